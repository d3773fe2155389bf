{#- Qubes behind the VPN. In dom0, after the VPN qube has its profile. -#}
{%- from 'qubes-vpn/settings.jinja' import vpn with context %}
include:
  - qubes-vpn.create
{% for client in vpn.clients %}
"qubes-vpn-{{ client }}-tag":
  qvm.tags:
    - name: {{ client }}
    - add:
      - qubes-vpn-client

"qubes-vpn-{{ client }}-netvm":
  qvm.prefs:
    - name: {{ client }}
    - netvm: {{ vpn.qube }}
    - require:
      - qvm: "qubes-vpn-{{ vpn.qube }}"
      - qvm: "qubes-vpn-{{ client }}-tag"
{% endfor %}
