#!/bin/sh
# PID 1 of a box (namespaces of its own) until systemd is: the package installed
# over what is there, by the script that the packages use, and a program that
# asks how its units do. $1: the repository, $2: where that program writes.
set -u
top=$1 output=$2
mount --make-rprivate /
mount -t tmpfs -o mode=0755 run /run
for dir in var etc root; do
    mkdir -p /run/over/$dir/up /run/over/$dir/work
    mount -t overlay -o "lowerdir=/$dir,upperdir=/run/over/$dir/up,workdir=/run/over/$dir/work" overlay /$dir
done
mount -t cgroup2 cgroup /sys/fs/cgroup
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
site=/usr/lib/python3/dist-packages
(cd "$top" && rpm/install.sh common /run/package $site && rpm/install.sh qube /run/package $site) || echo "NOT INSTALLED"
cp -r "$top/tests" "$top/lab" "$top/tests/dom0/standin/qubesdb.py" /run/package$site/
cp -a /run/package/etc/. /etc/
venv=$(echo "$top"/.venv/lib/python3.*/site-packages)
mount -t overlay -o lowerdir=/run/package/usr:/usr overlay /usr
mount -t overlay -o "lowerdir=/run/package$site:$venv:$site" overlay $site
systemd-sysusers /usr/lib/sysusers.d/qubes-vpn.conf
mkdir -p /run/qubes-service /run/systemd/system
touch /run/qubes-service/qubes-vpn
systemd-tmpfiles --create /usr/lib/tmpfiles.d/qubes-vpn.conf
# what only takes time here
for unit in systemd-udevd.service systemd-udev-trigger.service \
    systemd-udevd-control.socket systemd-udevd-kernel.socket \
    systemd-hwdb-update.service systemd-random-seed.service \
    systemd-update-utmp.service systemd-timesyncd.service \
    systemd-modules-load.service systemd-tmpfiles-setup.service \
    systemd-tmpfiles-setup-dev.service systemd-journal-flush.service \
    systemd-journal-catalog-update.service modprobe@.service; do
    ln -s /dev/null /run/systemd/system/$unit
done
ip link set lo up
ip link add eth0 type veth peer name up0
ip link set eth0 up
cat >/run/systemd/system/probe.service <<END
[Unit]
After=dbus.service
Wants=dbus.service
[Service]
Type=oneshot
Environment=HOME=/root LANG=C.UTF-8
ExecStart=/usr/bin/python3 -m tests.hostile.units_in_box
ExecStopPost=/bin/sh -c 'echo GUEST ENDED'
StandardOutput=append:$output
StandardError=append:$output
END

export container=lxc; exec /lib/systemd/systemd --unit=probe.service --show-status=no
