#!/bin/sh
# Tell dom0 that qubes of this template can be VPN qubes.
exec qvm-features-request supported-service.qubes-vpn=1
