#!/usr/bin/env bash
# Install the Debian packages named on the command line, or with --for-tests those the test suite needs.
#
# Only what is missing is installed, and only by root or through a sudo that asks no password.  What stays missing is
# named on standard output, one line; everything said to a person goes to standard error.  Services that come with a
# package are neither started nor left enabled.
#
# Exit status: 0 also when something was left out for want of privilege, 1 when an installation was tried and failed.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# A package, and the command that makes it unnecessary when it came from somewhere else (-: only the package will do).
for_tests='
nginx-light     nginx
redis-server    redis-server
redis-tools     redis-benchmark
iperf           iperf
iperf3          iperf3
wrk             wrk
busybox-static  busybox
golang-go       go
bind9-dnsutils  dig
nodejs          node
curl            curl
iproute2        ip
nftables        nft
iptables        iptables
gcc             gcc
libc6-dev       -
strace          strace
haproxy         haproxy
memcached       memcached
openssh-server  sshd
openssh-client  ssh
vsftpd          vsftpd
serf            serf
prometheus-alertmanager  prometheus-alertmanager
libpython3.11-testsuite  -
'
services='nginx redis-server iperf3 serf prometheus-alertmanager postgresql haproxy apache2 apache-htcacheclean mariadb
  memcached nats-server ssh rsync vsftpd named inetutils-inetd epmd'

say() { printf '%s\n' "$*" >&2; }

installed() { [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null || true) == installed ]]; }

present() {
  local command
  installed "$1" && return
  command=$(awk -v package="$1" '$1 == package { print $2 }' <<<"$for_tests")
  [[ -n $command && $command != - ]] && command -v "$command" >/dev/null
}

has_service() { [[ -e /lib/systemd/system/$1.service || -e /etc/init.d/$1 ]]; }

# Renews apt's lists; an update may fail where the lists that are here suffice.  Another apt-get that does so just now is
# waited for, at most five minutes, for unlike dpkg's lock that of the lists makes apt-get fail at once.
renew() {
  local try
  for try in {1..30}; do
    apt-get "${options[@]}" update >"$log" 2>&1 || true
    if grep -q 'Could not get lock' "$log"; then
      sleep 10
    elif [[ $try -lt 3 ]] && grep -q 'Failed to fetch' "$log"; then
      sleep 5
    else
      break
    fi
  done
}

# Runs as root, perhaps through sudo, which is why it is a mode of this script.
install_quietly() {
  local policy=/usr/sbin/policy-rc.d service new_services=()
  log=$(mktemp)
  made_policy=
  trap 'rm -f "$log" $made_policy' EXIT
  for service in $services; do
    has_service "$service" || new_services+=("$service")
  done
  if [[ ! -e $policy ]]; then
    # Asked by invoke-rc.d and by deb-systemd-invoke before they start anything: 101 is "forbidden".
    made_policy=$policy
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
  fi
  export DEBIAN_FRONTEND=noninteractive
  options=(-qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
  renew
  local package known=() try
  for package in "$@"; do
    if apt-cache show "$package" >/dev/null 2>&1; then known+=("$package"); else echo "Not in this release: $package"; fi
  done
  [[ ${#known[@]} -gt 0 ]] || return 0
  # Again, should the network fail for a while, the mirror change just now, or an installation have been killed.
  for try in {1..3}; do
    apt-get "${options[@]}" install --yes --no-install-recommends "${known[@]}" >>"$log" 2>&1 && break
    [[ $try -lt 3 ]] || { cat "$log"; return 1; }
    sleep 10
    renew
    dpkg --configure -a </dev/null >>"$log" 2>&1 || true
  done
  for service in ${new_services[@]+"${new_services[@]}"}; do
    has_service "$service" || continue
    if command -v systemctl >/dev/null; then
      systemctl --quiet disable "$service.service" || true
    else
      update-rc.d "$service" disable || true
    fi
  done
}

if [[ ${1:-} == --as-root ]]; then
  shift
  install_quietly "$@" >&2
  exit
fi

if [[ ${1:-} == --for-tests ]]; then
  mapfile -t wanted < <(awk 'NF { print $1 }' <<<"$for_tests")
else
  wanted=("$@")
fi
look() {
  local package
  missing=()
  for package in "${wanted[@]}"; do
    present "$package" || missing+=("$package")
  done
}
look
[[ ${#missing[@]} -gt 0 ]] || exit 0

if ! command -v apt-get >/dev/null; then
  say "Left out, because this is not a Debian system: ${missing[*]}"
  echo "${missing[*]}"
elif [[ $EUID -eq 0 ]] || sudo -n true 2>/dev/null; then
  sudo=()
  [[ $EUID -eq 0 ]] || sudo=(sudo -n)
  say "Installing${sudo[*]:+ with sudo}: ${missing[*]}"
  "${sudo[@]}" bash "$0" --as-root "${missing[@]}" </dev/null ||
    { say "Could not install ${missing[*]}: see above."; exit 1; }
  look
  [[ ${#missing[@]} -eq 0 ]] || echo "${missing[*]}"
else
  say "Left out, because installing needs root: ${missing[*]}"
  say "To have them: sudo apt-get install ${missing[*]}"
  echo "${missing[*]}"
fi
