#!/bin/bash
# A real MIT KDC and a real sshd with GSSAPI on 127.0.0.1, unpacked from Debian's packages; nothing is installed.
#   lab.sh DIR fetch | up ACCOUNTS | down
# up: principal evercred@TEST.LOCAL with its ticket in DIR/cc, accounts a0, a1, … (all uid 0, in a private /etc/passwd),
# MaxStartups at its default, DIR/ssh as the client; account recv runs DIR/receive whatever is asked of it; account keyed
# takes the key in DIR/keyed.pub. Ports 18888 (KDC) and 12222 (sshd).
set -e
[ $# -ge 2 ] || { echo "usage: lab.sh DIR fetch|up ACCOUNTS|down" >&2; exit 2; }
. "$(dirname "$0")/../needs.sh"
mkdir -p "$1"; LAB=$(cd "$1" && pwd -P); shift; cd "$LAB"
L=$LAB/root/usr/lib/$(uname -m)-linux-gnu
tools() { env LD_LIBRARY_PATH="$L" KRB5_CONFIG="$LAB/krb5.conf" KRB5_KDC_PROFILE="$LAB/kdc.conf" "$@"; }
fetch() {
  [ -f fetched ] && return
  mkdir -p debs root
  (cd debs && apt_alone apt-get download libgssapi-krb5-2 libkrb5-3 libkrb5support0 libk5crypto3 libgssrpc4 libkdb5-10 \
    libkadm5srv-mit12 libkadm5clnt-mit12 libev4 libverto-libev1 libverto1 krb5-user krb5-kdc krb5-admin-server \
    libwrap0 openssh-server openssh-sftp-server openssh-client libkeyutils1 libcom-err2)
  for d in debs/*.deb; do dpkg -x "$d" root; done
  touch fetched
}
up() {
  rm -rf kdc sshd homes cc ./*.keytab; mkdir -p kdc sshd homes
  cat > krb5.conf <<E
[libdefaults]
 default_realm = TEST.LOCAL
 dns_lookup_kdc = false
 dns_lookup_realm = false
 rdns = false
 dns_canonicalize_hostname = false
 udp_preference_limit = 1
 plugin_base_dir = $L/krb5/plugins
[realms]
 TEST.LOCAL = {
  kdc = 127.0.0.1:18888
 }
[domain_realm]
 localhost = TEST.LOCAL
E
  cat > kdc.conf <<E
[kdcdefaults]
 kdc_listen = 127.0.0.1:18888
 kdc_tcp_listen = 127.0.0.1:18888
[realms]
 TEST.LOCAL = {
  database_name = $LAB/kdc/principal
  key_stash_file = $LAB/kdc/stash
  acl_file = $LAB/kdc/kadm5.acl
  supported_enctypes = aes256-cts:normal
 }
[dbmodules]
 db_module_dir = $L/krb5/plugins/kdb
[logging]
 kdc = FILE:$LAB/kdc/kdc.log
E
  bin=$LAB/root/usr/sbin
  tools "$bin"/kdb5_util -P masterpw create -s -r TEST.LOCAL >/dev/null 2>&1
  for line in "addprinc -randkey host/localhost" "ktadd -k $LAB/host.keytab host/localhost" \
              "addprinc -randkey evercred" "ktadd -k $LAB/evercred.keytab evercred"; do
    tools "$bin"/kadmin.local -q "$line" >/dev/null 2>&1
  done
  # Not by the function: the pid must be the server's own.
  (env LD_LIBRARY_PATH="$L" KRB5_CONFIG="$LAB/krb5.conf" KRB5_KDC_PROFILE="$LAB/kdc.conf" \
    "$bin"/krb5kdc -n > kdc/out.log 2>&1 & echo $! > kdc/pid)
  for _ in $(seq 50); do
    tools env KRB5CCNAME="FILE:$LAB/cc" root/usr/bin/kinit -k -t evercred.keytab evercred 2>kdc/kinit.log && break; sleep 0.2
  done
  chmod 644 cc
  ssh-keygen -q -t ed25519 -N '' -f sshd/hk
  cp /etc/passwd sshd/passwd
  grep -q '^sshd:' sshd/passwd || echo 'sshd:x:109:65534::/run/sshd:/usr/sbin/nologin' >> sshd/passwd
  for n in $(seq 0 $(($1 - 1))); do
    mkdir -m 700 "homes/a$n"; echo evercred@TEST.LOCAL > "homes/a$n/.k5login"
    echo "a$n:x:0:0::$LAB/homes/a$n:/bin/bash" >> sshd/passwd
  done
  mkdir -m 700 homes/recv; echo evercred@TEST.LOCAL > homes/recv/.k5login
  echo "recv:x:0:0::$LAB/homes/recv:/bin/bash" >> sshd/passwd
  mkdir -m 700 homes/keyed
  echo "keyed:x:0:0::$LAB/homes/keyed:/bin/bash" >> sshd/passwd
  cat > sshd/conf <<E
Port 12222
ListenAddress 127.0.0.1
HostKey $LAB/sshd/hk
PidFile $LAB/sshd/pid
UsePAM no
PasswordAuthentication no
PubkeyAuthentication no
KbdInteractiveAuthentication no
GSSAPIAuthentication yes
GSSAPIStrictAcceptorCheck no
PermitRootLogin yes
StrictModes no
LogLevel VERBOSE
Subsystem sftp internal-sftp
Match User recv
  ForceCommand $LAB/receive
Match User keyed
  PubkeyAuthentication yes
  AuthorizedKeysFile $LAB/keyed.pub
E
  cat > sshd/start.sh <<E
mount --bind $LAB/sshd/passwd /etc/passwd && mount -t tmpfs tmpfs /run && mkdir -p /run/sshd && chmod 755 /run/sshd
[ -e /usr/lib/openssh ] || { mkdir -p /usr/lib/openssh; } 2>/dev/null
[ -e /usr/lib/openssh/sshd-session ] || ! [ -e $LAB/root/usr/lib/openssh/sshd-session ] || mount --bind $LAB/root/usr/lib/openssh /usr/lib/openssh
export LD_LIBRARY_PATH=$L KRB5_CONFIG=$LAB/krb5.conf KRB5_KTNAME=$LAB/host.keytab
exec $LAB/root/usr/sbin/sshd -D -e -f $LAB/sshd/conf
E
  (unshare -m bash sshd/start.sh > sshd/log 2>&1 &)
  echo "[localhost]:12222 $(cut -d' ' -f1,2 sshd/hk.pub)" > known_hosts
  cat > ssh <<E
#!/bin/sh
export LD_LIBRARY_PATH=$L KRB5_CONFIG=$LAB/krb5.conf
exec $LAB/root/usr/bin/ssh -o GSSAPIAuthentication=yes -o PreferredAuthentications=gssapi-with-mic -o UserKnownHostsFile=$LAB/known_hosts -o GlobalKnownHostsFile=/dev/null "\$@"
E
  chmod 755 ssh
  for _ in $(seq 50); do [ -f sshd/pid ] && return; sleep 0.2; done
  cat sshd/log >&2; return 1
}
down() {
  for f in kdc/pid sshd/pid; do
    if [ -f "$f" ]; then kill "$(cat "$f")" 2>/dev/null || true; fi
    rm -f "$f"
  done
}
"$@"
