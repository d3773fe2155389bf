{#- A template of its own: the package is in no other. In dom0. -#}
{%- from 'qubes-vpn/settings.jinja' import vpn with context %}
{%- if vpn.template != vpn.source %}
"qubes-vpn-{{ vpn.template }}-clone":
  qvm.clone:
    - name: {{ vpn.template }}
    - source: {{ vpn.source }}
{%- else %}
"qubes-vpn-{{ vpn.template }}-exists":
  qvm.exists:
    - name: {{ vpn.template }}
{%- endif %}
