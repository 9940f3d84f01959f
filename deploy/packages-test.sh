#!/usr/bin/env bash
# Installs dist/*.deb into a copy of this system, under a systemd that is process 1 there, and does with them what an
# operator does: deploy/packages-steps.sh. `make test-packages` calls it. It takes root, for namespaces, mounts and a
# cgroup of its own; nothing of it is left, and nothing outside changes: the copy is an overlay whose changes are kept in
# memory, without a network but loopback, and with the kernel's settings read-only.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'packages-test: %s\n' "$*" >&2; exit 1; }

# boot DIRECTORY: becomes process 1 of the copy. It runs in namespaces of its own.
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
  rm -f "$copy/var/lib/man-db/auto-update" # or each dpkg indexes every manual of the system
  # What this system starts besides is not started there, and nobody waits for a network.
  mkdir -p "$copy/run/systemd/system"
  printf '[Unit]\nRequires=sysinit.target\nAfter=sysinit.target\n' >"$copy/run/systemd/system/packages-test.target"
  for unit in systemd-networkd-wait-online NetworkManager-wait-online ifupdown-wait-online; do
    ln -s /dev/null "$copy/run/systemd/system/$unit.service"
  done
  # Not chroot, in which the kernel makes no user namespaces: PrivateUsers= needs one.
  mkdir "$copy/mnt/outside"
  cd "$copy"
  pivot_root . mnt/outside
  umount -l mnt/outside
  mount --make-rshared / # as process 1 does outside of containers: the mounts of credentials spread to it
  exec setpriv --bounding-set=-sys_module,-sys_boot,-sys_time,-sys_rawio \
    env -i container=packages-test PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C \
    "$systemd" --system --unit=packages-test.target --show-status=no
}

for systemd in /usr/lib/systemd/systemd /lib/systemd/systemd; do [ ! -x "$systemd" ] || break; done
if [ "${1-}" = boot ]; then boot "$2"; fi

[ "$(id -u)" = 0 ] || fail 'it makes namespaces and mounts: run it as root, sudo make test-packages'
[ -x "$systemd" ] || fail 'there is no systemd: run deploy/setup.sh --test'
[ -n "$(echo dist/*.deb)" ] && [ -e "$(echo dist/brevet_*.deb)" ] || fail 'there are no packages: run make packages'
for path in /etc/brevet /etc/brevet-agent /var/lib/brevet /var/lib/brevet-agent; do
  [ ! -e "$path" ] || fail "$path exists: this system has a Brevet of its own, and the copy would too; run it elsewhere"
done

base=$(mktemp -d "${TMPDIR:-/tmp}/brevet-packages.XXXXXX")
log=$base.log
cgroups=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)
[ -n "$cgroups" ] || fail 'systemd needs cgroups of version 2, and none are mounted here'
cgroup=$cgroups$(sed -n 's/^0:://p' /proc/self/cgroup | sed 's|/$||')/${base##*/}
mkdir "$cgroup" || fail "systemd needs a cgroup of its own, and $cgroup cannot be made"

cleanup() {
  status=$?
  trap - EXIT INT TERM
  if [ "$status" -ne 0 ]; then
    cat "$log" >&2
    inside journalctl --no-pager --quiet --lines=30 >&2 || true
  fi
  if [ -n "${outer-}" ]; then # its end is the end of process 1, and with it of all that was started there
    kill -KILL "$outer" 2>/dev/null || true
    wait "$outer" 2>/dev/null || true
  fi
  for _ in $(seq 50); do # the kernel takes a moment to empty them
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
  kill -0 "$outer" 2>/dev/null || fail 'systemd ended; it said:'
  sleep 0.1
done
[ "$state" = running ] || [ "$state" = degraded ] || fail "systemd does not come up: it is ${state:-silent}; it said:"
inside bash /packages/packages-steps.sh
