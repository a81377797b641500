#!/bin/sh
# The credmon as user condor, with no capability but the one to read credd's .top (root's, mode 0600).
exec setpriv --reuid=condor --regid=condor --init-groups --no-new-privs \
    --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search --bounding-set=-all,+dac_read_search \
    /usr/sbin/condor_credmon_evercred "$@"
