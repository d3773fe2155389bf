#!/bin/sh
# Put the files of a package where they belong.
#
#   install.sh common|qube|dom0 DESTDIR SITELIB
#
# The specs and debian/rules both call this: a file is named in one place.
set -eu
umask 022
part=$1
root=$2
site=$2$3
here=$(dirname "$0")
top=$here/..

put() { # MODE FOLDER FILE...
	mode=$1 folder=$root$2
	shift 2
	install -d -m 755 "$folder"
	install -m "$mode" "$@" "$folder/"
}

modules() { # FOLDER FILE...
	folder=$site/$1
	shift
	install -d -m 755 "$folder"
	install -m 644 "$@" "$folder/"
}

common() {
	modules qubes_vpn "$top/qubes_vpn/__init__.py" "$top/qubes_vpn/errors.py"
	modules qubes_vpn/qubes "$top/qubes_vpn/qubes/__init__.py"
	modules qubes_vpn/cli "$top/qubes_vpn/cli/__init__.py"
}

dom0() {
	modules qubes_vpn/qubes/admin "$top"/qubes_vpn/qubes/admin/*.py
	modules qubes_vpn/cli "$top/qubes_vpn/cli/admin.py"
	put 755 /usr/bin "$here/bin/qvm-vpn"
	put 644 /etc/qubes/policy.d "$here/policy.d/30-qubes-vpn.policy"
	put 644 /usr/share/doc/qubes-vpn-dom0 \
		"$here/policy.d/30-qubes-vpn-mgmt.policy.example" \
		"$top/docs/handbook.md"
	put 644 /usr/share/man/man1 "$top/docs/man/qvm-vpn.1"
	(cd "$top/salt" && find . -type f) | while read -r file; do
		install -D -m 644 "$top/salt/$file" "$root/srv/salt/$file"
	done
}

# Everything but what dom0 gets and what both share.
qube_modules() {
	(cd "$top" && find qubes_vpn -name '*.py') | while read -r file; do
		case $file in
		qubes_vpn/__init__.py | qubes_vpn/errors.py) continue ;;
		qubes_vpn/qubes/__init__.py | qubes_vpn/cli/__init__.py) continue ;;
		qubes_vpn/qubes/admin/* | qubes_vpn/cli/admin.py) continue ;;
		esac
		install -D -m 644 "$top/$file" "$site/${file}"
	done
}

lock() {
	for file in "$top"/qubes_vpn/lockdown/*; do
		name=${file##*/}
		case $name in
		*.py | __pycache__) continue ;;
		lockdown.sh) put 755 /usr/lib/qubes-vpn "$file" ;;
		*) put 644 /usr/lib/qubes-vpn "$file" ;;
		esac
		# the package finds the same files beside itself
		ln -srf "$root/usr/lib/qubes-vpn/$name" \
			"$site/qubes_vpn/lockdown/$name"
	done
}

units() {
	units=/usr/lib/systemd/system
	put 644 $units "$here"/systemd/*.service "$here"/systemd/*.socket
	for folder in "$here"/systemd/*.service.d; do
		put 644 "$units/${folder##*/}" "$folder"/*.conf
	done
	put 644 /usr/lib/systemd/system-preset "$here/systemd/74-qubes-vpn.preset"
	put 644 /usr/lib/sysusers.d "$here/systemd/qubes-vpn.sysusers"
	put 644 /usr/lib/tmpfiles.d "$here/systemd/qubes-vpn.tmpfiles"
	mv "$root/usr/lib/sysusers.d/qubes-vpn.sysusers" \
		"$root/usr/lib/sysusers.d/qubes-vpn.conf"
	mv "$root/usr/lib/tmpfiles.d/qubes-vpn.tmpfiles" \
		"$root/usr/lib/tmpfiles.d/qubes-vpn.conf"
}

qube() {
	qube_modules
	lock
	units
	put 755 /usr/bin "$here/bin/qubes-vpn"
	put 755 /etc/qubes-rpc "$here"/qubes-rpc/qubesvpn.*
	install -d -m 755 "$root/etc/qubes/rpc-config"
	for service in "$here"/qubes-rpc/qubesvpn.*; do
		install -m 644 "$here/rpc-config/qubesvpn" \
			"$root/etc/qubes/rpc-config/${service##*/}"
	done
	put 755 /etc/qubes/post-install.d "$here/hooks/20-qubes-vpn.sh"
	put 755 /etc/qubes/suspend-post.d "$here/hooks/90-qubes-vpn.sh"
	put 644 /usr/lib/qubes-bind-dirs.d "$here/hooks/50-qubes-vpn.conf"
	put 644 /usr/share/applications "$here"/applications/*.desktop
	put 644 /usr/share/man/man1 "$top/docs/man/qubes-vpn.1"
	put 644 /usr/share/doc/qubes-vpn "$top/docs/handbook.md"
	install -d -m 700 "$root/etc/qubes-vpn"
}

"$part"
