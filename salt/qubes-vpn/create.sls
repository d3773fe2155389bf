{#- The VPN qube, as `qvm-vpn create` makes it. In dom0. -#}
{%- from 'qubes-vpn/settings.jinja' import vpn with context %}
"qubes-vpn-{{ vpn.qube }}":
  qvm.vm:
    - name: {{ vpn.qube }}
    - present:
      - template: {{ vpn.template }}
      - label: {{ vpn.label }}
    - prefs:
      - provides-network: True
      - netvm: {{ vpn.netvm }}
      - memory: {{ vpn.memory }}
{%- if vpn.autostart %}
      - autostart: True
{%- endif %}
    - tags:
      - add:
        - qubes-vpn
    - features:
      - enable:
        - service.qubes-vpn
{%- if vpn.profile %}
      - set:
        - vm-config.vpn-profile: {{ vpn.profile }}
{%- endif %}
