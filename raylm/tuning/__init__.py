"""Ray and Ray Tune: the cluster, the launch of a sweep, its trials and the search for the next one."""
