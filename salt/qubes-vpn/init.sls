{#- One state for all: dom0, the template and the VPN qube each take theirs. -#}
{%- from 'qubes-vpn/settings.jinja' import vpn with context %}
include:
{%- if grains['id'] == 'dom0' %}
  - qubes-vpn.clone
  - qubes-vpn.create
  - qubes-vpn.pin
  - qubes-vpn.assign
{%- elif grains['id'] == vpn.template %}
  - qubes-vpn.install
{%- elif grains['id'] == vpn.qube %}
  - qubes-vpn.configure
{%- else %}
  []
{%- endif %}
