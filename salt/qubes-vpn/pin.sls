{#- Only the endpoints, by address, protocol and port; with none named, the
    qube is closed until `qvm-vpn pin`. In dom0. -#}
{%- from 'qubes-vpn/settings.jinja' import vpn with context %}
include:
  - qubes-vpn.create

"qubes-vpn-{{ vpn.qube }}-pin":
  qvm.firewall:
    - name: {{ vpn.qube }}
    - require:
      - qvm: "qubes-vpn-{{ vpn.qube }}"
    - set:
{%- for endpoint in vpn.endpoints %}
{%- set address, proto, port = endpoint.split() %}
{%- set family = 'dst6' if ':' in address else 'dst4' %}
{%- set length = '128' if ':' in address else '32' %}
      - 'action=accept {{ family }}={{ address }}/{{ length }} proto={{ proto }} dstports={{ port }}-{{ port }}'
{%- endfor %}
      - 'action=drop'
