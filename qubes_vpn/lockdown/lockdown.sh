#!/bin/sh
# The lock: nothing of this qube and of the qubes behind it leaves, whatever
# else runs or does not. Needs sh, nft and ip; no Python, no configuration.
#
#   lockdown.sh apply [--uplink DEV]      close; may be repeated at any time
#   lockdown.sh remove --open-network     the only undo
#
# Exit 0: in force. 64: usage. 69: not a qube that is to be locked. 71: the
# system refused; forwarding is off.
set -u
umask 022
PATH=/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL

case $0 in */*) here=${0%/*} ;; *) here=. ;; esac
service=/run/qubes-service/qubes-vpn
profiles=/rw/config/qubes-vpn
# Used where the package's group is missing (a laboratory, a foreground run).
fixed_gid=7078

say() {
	echo "qubes-vpn lockdown: $*" >&2
}

usage() {
	say 'usage: lockdown.sh apply [--uplink DEV] | remove --open-network'
	exit 64
}

put() { # VALUE FILE...
	value=$1
	shift
	for file in "$@"; do
		[ -e "$file" ] || continue
		# an unchanged value is not written: no notice to the guardian
		[ "$(cat "$file" 2>/dev/null)" = "$value" ] && continue
		echo "$value" 2>/dev/null >"$file" || return 1
	done
	return 0
}

settings() {
	while read -r path value; do
		# shellcheck disable=SC2086 # the star is meant to expand
		put "$value" /proc/sys/$path || return 1
	done <"$here/sysctls"
	put 1 "/proc/sys/net/ipv6/conf/$uplink/disable_ipv6"
}

refused() {
	say "$1: forwarding is turned off"
	put 0 /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding
	# clearing ip_forward has set accept_redirects
	settings
	exit 71
}

# Rules and routes that are there already make ip complain: what counts is
# what is in force afterwards.
route_family() { # -4 or -6
	ip "$1" -force -batch "$here/rules.batch" >/dev/null 2>&1
	found=$(ip "$1" rule show) || return 1
	for rule in \
		'45:.from all iif lo ipproto icmp lookup main suppress_ifgroup 1' \
		'45:.from all iif lo ipproto ipv6-icmp lookup main suppress_ifgroup 1' \
		'46:.from all iif lo ipproto icmp lookup 7078' \
		'46:.from all iif lo ipproto ipv6-icmp lookup 7078' \
		'50:.from all iif lo lookup main' \
		'60:.from all iif tun-vpn .*lookup main suppress_ifgroup 1' \
		'60:.from all iif ovpn-vpn .*lookup main suppress_ifgroup 1' \
		'70:.from all lookup 7078' \
		'71:.from all unreachable'; do
		echo "$found" | grep -q "^$rule" || return 1
	done
	ip "$1" route show table 7078 |
		grep -q '^unreachable default .*metric 4278198272'
}

load() { # FILE, or - for what comes in
	case $1 in -) ;; *) set -- "$here/$1" ;; esac
	nft -D "uplink=$uplink" -D "gid=$gid" -f "$1"
}

held() {
	nft list table inet qubes_vpn 2>/dev/null | grep -q '^.flags owner'
}

# A keeper may own the filter (nft 1.1, Linux 6.9). While it lives nobody else
# can change that, for better or worse: the other layers are closed then. What
# it leaves behind can be deleted, but not added to as a table.
load_filter() {
	load inet.nft 2>/dev/null && return
	{
		echo 'delete table inet qubes_vpn'
		sed '/^add table /d; /^delete table /d' "$here/inet.nft"
	} | load - 2>/dev/null && return
	if held; then
		say 'the filter is the keeper'"'"'s own: closing the other layers'
		return
	fi
	load inet.nft
}

find_gid() {
	gid=$(getent group qubes-vpn 2>/dev/null | cut -d: -f3)
	[ -n "$gid" ] && return
	gid=$fixed_gid
	say "no group qubes-vpn: using the fixed number $gid"
}

apply() {
	find_gid
	load_filter || refused 'the filter does not load'
	route_family -4 || refused 'the IPv4 rules do not load'
	if [ -d /proc/sys/net/ipv6 ]; then
		route_family -6 || refused 'the IPv6 rules do not load'
	fi
	settings || refused 'the kernel settings are refused'
	if ! load netdev.nft; then
		[ -e "/sys/class/net/$uplink" ] &&
			refused 'the filter of the uplink does not load'
		say "this kernel wants $uplink first: call again when it is there"
	fi
	return 0
}

remove() {
	if held; then
		say 'the filter is the keeper'"'"'s own: stop qubes-vpn-keeper first'
		exit 71
	fi
	nft delete table netdev qubes_vpn 2>/dev/null
	for family in -4 -6; do
		for priority in 71 70 60 60 50 46 46 45 45; do
			ip "$family" rule del priority "$priority" 2>/dev/null
		done
		ip "$family" route flush table 7078 2>/dev/null
	done
	nft delete table inet qubes_vpn 2>/dev/null
	say 'removed: this network is open'
}

[ $# -ge 1 ] || usage
verb=$1
shift
uplink=eth0
named=
case $verb in
apply)
	if [ $# -eq 2 ] && [ "$1" = --uplink ]; then
		uplink=$2
		named=yes
	elif [ $# -ne 0 ]; then
		usage
	fi
	case $uplink in
	'' | *[!A-Za-z0-9_.-]* | . | ..) usage ;;
	esac
	[ ${#uplink} -le 15 ] || usage
	if [ -z "$named" ] && [ ! -e "$service" ] && [ ! -e "$profiles" ]; then
		say "service qubes-vpn is off here: name the device by --uplink"
		exit 69
	fi
	apply
	;;
remove)
	[ $# -eq 1 ] && [ "$1" = --open-network ] || usage
	remove
	;;
*) usage ;;
esac
