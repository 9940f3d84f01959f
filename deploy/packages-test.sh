#!/usr/bin/env bash
# Installs dist/*.deb into a copy of this system in which systemd is process 1, and runs deploy/packages-steps.sh there.
# `make test-packages` calls it. It needs root for namespaces, mounts and a cgroup. It changes nothing outside of the
# copy and removes it at the end: the copy is an overlay in memory, with only a loopback network and read-only kernel
# settings.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'packages-test: %s\n' "$*" >&2; exit 1; }

# boot DIRECTORY: sets up the copy and becomes its process 1. It must run in new namespaces.
boot() {
  local base=$1 copy=$1/copy
  mount --make-rprivate /
  mount -t tmpfs -o mode=700 packages-test "$base"
  mkdir "$base"/{changes,work,copy}
  mount -t overlay -o "lowerdir=/,upperdir=$base/changes,workdir=$base/work" overlay "$copy"
  mount -t proc proc "$copy/proc"
  mount --bind "$copy/proc/sys" "$copy/proc/sys"
  mount -o remount,bind,ro "$copy/proc/sys"
  mount -t sysfs -o ro sysfs "$copy/sys"
  mount -t cgroup2 cgroup2 "$copy/sys/fs/cgroup"
  mount -t tmpfs -o mode=755 tmpfs "$copy/run"
  mount -t tmpfs -o mode=1777 tmpfs "$copy/tmp"
  mount -t tmpfs -o mode=755 tmpfs "$copy/dev"
  for device in null zero full random urandom tty; do
    touch "$copy/dev/$device"
    mount --bind "/dev/$device" "$copy/dev/$device"
  done
  mkdir "$copy/dev/pts" "$copy/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666 devpts "$copy/dev/pts"
  ln -s pts/ptmx "$copy/dev/ptmx"
  ip link set lo up

  install -d -m 0755 "$copy/packages"
  cp dist/*.deb deploy/packages-steps.sh "$copy/packages/"
  rm -f "$copy/var/lib/man-db/auto-update" # otherwise each dpkg indexes all manual pages of the system
  # Start none of this system's other services, and do not wait for a network.
  mkdir -p "$copy/run/systemd/system"
  printf '[Unit]\nRequires=sysinit.target\nAfter=sysinit.target\n' >"$copy/run/systemd/system/packages-test.target"
  for unit in systemd-networkd-wait-online NetworkManager-wait-online ifupdown-wait-online; do
    ln -s /dev/null "$copy/run/systemd/system/$unit.service"
  done
  # Not chroot: the kernel makes no user namespaces in one, and PrivateUsers= needs one.
  mkdir "$copy/mnt/outside"
  cd "$copy"
  pivot_root . mnt/outside
  umount -l mnt/outside
  mount --make-rshared / # as on a real system: systemd's mounts of credentials must propagate
  exec setpriv --bounding-set=-sys_module,-sys_boot,-sys_time,-sys_rawio \
    env -i container=packages-test PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C \
    "$systemd" --system --unit=packages-test.target --show-status=no
}

for systemd in /usr/lib/systemd/systemd /lib/systemd/systemd; do [ ! -x "$systemd" ] || break; done
if [ "${1-}" = boot ]; then boot "$2"; fi

[ "$(id -u)" = 0 ] || fail 'this needs root for namespaces and mounts: run sudo make test-packages'
[ -x "$systemd" ] || fail 'systemd is not installed: run deploy/setup.sh --test'
[ -n "$(echo dist/*.deb)" ] && [ -e "$(echo dist/brevet_*.deb)" ] || fail 'there are no packages: run make packages'
for path in /etc/brevet /etc/brevet-agent /var/lib/brevet /var/lib/brevet-agent; do
  [ ! -e "$path" ] || fail "$path exists: Brevet is installed on this system; run the test on another one"
done

base=$(mktemp -d "${TMPDIR:-/tmp}/brevet-packages.XXXXXX")
log=$base.log
cgroups=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)
[ -n "$cgroups" ] || fail 'systemd needs cgroups version 2, which are not mounted'
cgroup=$cgroups$(sed -n 's/^0:://p' /proc/self/cgroup | sed 's|/$||')/${base##*/}
mkdir "$cgroup" || fail "systemd needs a cgroup, and creating $cgroup failed"

cleanup() {
  status=$?
  trap - EXIT INT TERM
  if [ "$status" -ne 0 ]; then
    cat "$log" >&2
    inside journalctl --no-pager --quiet --lines=30 >&2 || true
  fi
  if [ -n "${outer-}" ]; then # this ends process 1, and with it all processes of the copy
    kill -KILL "$outer" 2>/dev/null || true
    wait "$outer" 2>/dev/null || true
  fi
  for _ in $(seq 50); do # the kernel empties the cgroups with a delay
    find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null && break
    sleep 0.1
  done
  rm -rf "$base" "$log"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

(
  echo "$BASHPID" >"$cgroup/cgroup.procs"
  exec unshare --mount --pid --net --uts --ipc --cgroup --fork --kill-child "$0" boot "$base"
) >"$log" 2>&1 &
outer=$!

inside() { # COMMAND…: runs a command in the copy
  local first
  first=$(cat "/proc/$outer/task/$outer/children" 2>/dev/null)
  [ -n "$first" ] && nsenter --target "${first%% *}" --mount --pid --net --uts --ipc --cgroup --root --wd \
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/root "$@"
}
for _ in $(seq 300); do
  if state=$(inside systemctl is-system-running 2>/dev/null) || [ "$state" = degraded ]; then break; fi
  kill -0 "$outer" 2>/dev/null || fail 'systemd ended; its output:'
  sleep 0.1
done
[ "$state" = running ] || [ "$state" = degraded ] || fail "systemd did not start: its state is ${state:-unknown}; its output:"
inside bash /packages/packages-steps.sh
