#!/usr/bin/env bash
# Hosts on one machine, for `ray up` over real SSH: each a network namespace on one bridge with its own pid, mount and uts
# namespace and its own sshd.
#
#   lab_hosts.sh up N             start hosts 0..N-1 at $LAB_NET.10, .11, ...; return when their sshd accept connections
#   lab_hosts.sh down             remove all hosts; only processes with recorded pids are killed
#   lab_hosts.sh exec I CMD ...   run CMD on host I
#   lab_hosts.sh link I up|down   connect host I to the network, or disconnect it
#
# Environment: LAB_DIR, a folder for keys, homes and logs; LAB_NET, three numbers of a /24, whose .1 is this machine; LAB_TAG, a
# prefix of at most six letters for names in the kernel; LAB_SHARE, folders below /tmp or /root that hosts share.
#
# Pid namespaces limit `ray stop`, which ends all Ray processes that are visible to it, to a host. Each host has its own /tmp,
# /root, /run and /dev/shm; the rest of the file system is this machine's.
set -euo pipefail

hosts=$LAB_DIR/hosts
key=$LAB_DIR/id_ed25519
bridge=${LAB_TAG}br0
self=$(readlink -f "$0")

fail() { echo "lab_hosts.sh: $*" >&2; exit 1; }
address() { echo "$LAB_NET.$((10 + $1))"; }

# Succeed if the recorded pid 1 of a host is still the process that this script started.
running() {
    local pid
    pid=$(cat "$hosts/$1/pid1" 2>/dev/null) || return 1
    { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -q -- "_pid1 $1 "
}

# Run as pid 1 of a host, in its namespaces: mount its folders, start sshd, and reap orphaned processes.
pid1() {
    local host=$hosts/$1 shared
    hostname "host$1"
    for shared in $LAB_SHARE; do # before the private mounts below cover the originals
        case $shared in
        /tmp/* | /root/*) mkdir -p "$host$shared" && mount --rbind "$shared" "$host$shared" ;;
        esac
    done
    mount --bind "$host/etc/hosts" /etc/hosts
    mount --bind "$host/etc/resolv.conf" /etc/resolv.conf
    mount --rbind "$host/root" /root
    mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir /run/sshd
    mount --rbind "$host/tmp" /tmp # last: LAB_DIR may lie below /tmp
    cd /
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        /usr/sbin/sshd -D -e -f "$host/etc/sshd_config" &
    while :; do
        wait -n 2>/dev/null || true
        sleep 1
    done
}

# Write the files of a host: keys, host names and the configuration of sshd.
create_files() {
    local host=$hosts/$1 other
    mkdir -p "$host/tmp" "$host/root/.ssh" "$host/etc"
    chmod 1777 "$host/tmp"
    chmod 700 "$host/root" "$host/root/.ssh"
    install -m 600 "$key.pub" "$host/root/.ssh/authorized_keys"
    : >"$host/root/.bashrc"
    : >"$host/etc/resolv.conf" # no queries to name servers
    ssh-keygen -q -t ed25519 -N '' -f "$host/etc/host_key"
    { # Ray uses the address of the host's name if it cannot reach the internet
        echo "127.0.0.1 localhost"
        for ((other = 0; other < $2; other++)); do echo "$(address "$other") host$other"; done
    } >"$host/etc/hosts"
    cat >"$host/etc/sshd_config" <<CONFIG
ListenAddress $(address "$1")
HostKey $host/etc/host_key
PidFile none
AuthorizedKeysFile /root/.ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
MaxStartups 100
MaxSessions 100
CONFIG
}

start() {
    local host=$hosts/$1 space=$LAB_TAG-h$1 tries child
    ip netns add "$space"
    ip link add "$LAB_TAG-v$1" type veth peer name eth0 netns "$space"
    ip link set "$LAB_TAG-v$1" master "$bridge" up
    ip -n "$space" link set lo up
    ip -n "$space" addr add "$(address "$1")/24" dev eth0
    ip -n "$space" link set eth0 up
    setsid nsenter --net="/run/netns/$space" unshare --mount --uts --pid --fork --kill-child --mount-proc \
        "$self" _pid1 "$1" </dev/null >"$host/log" 2>&1 &
    for ((tries = 0; tries < 200; tries++)); do
        child=$(cat "/proc/$!/task/$!/children" 2>/dev/null || true)
        [ -n "$child" ] && echo "${child%% *}" >"$host/pid1" && break
        sleep 0.05
    done
    for ((tries = 0; tries < 200; tries++)); do
        (exec 3<>"/dev/tcp/$(address "$1")/22") 2>/dev/null && return
        sleep 0.05
    done
    fail "host $1: sshd does not accept connections: $(cat "$host/log")"
}

power_off() {
    local tries
    running "$1" || return 0
    kill -KILL "$(cat "$hosts/$1/pid1")" # ends all processes of its pid namespace
    for ((tries = 0; tries < 200; tries++)); do
        running "$1" || return 0
        sleep 0.05
    done
    fail "host $1 is still running"
}

case ${1:-} in
up)
    mkdir -p "$hosts"
    ssh-keygen -q -t ed25519 -N '' -f "$key"
    ip link add "$bridge" type bridge
    ip addr add "$LAB_NET.1/24" dev "$bridge"
    ip link set "$bridge" up
    for ((i = 0; i < $2; i++)); do
        create_files "$i" "$2"
        start "$i"
    done
    ;;
down)
    for host in "$hosts"/*; do
        [ -d "$host" ] || continue
        i=${host##*/}
        power_off "$i"
        ip link del "$LAB_TAG-v$i" 2>/dev/null || true # a deleted namespace releases its links with a delay
        ip netns del "$LAB_TAG-h$i" 2>/dev/null || true
    done
    ip link del "$bridge" 2>/dev/null || true
    ! grep -q " $hosts/" /proc/self/mounts || fail "a mount remains below $hosts"
    rm -rf "$hosts"
    ;;
exec)
    running "$2" || fail "host $2 is off"
    exec nsenter --target "$(cat "$hosts/$2/pid1")" --net --mount --uts --pid \
        env -i HOME=/root TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${@:3}"
    ;;
link) ip link set "$LAB_TAG-v$2" "$3" ;;
_pid1) pid1 "$2" ;;
*) sed -n '2,14p' "$self" && exit 2 ;;
esac
