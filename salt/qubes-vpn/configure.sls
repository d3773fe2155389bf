{#- The profile and its secrets, in the VPN qube. They come by the pillar
    alone: what is below /srv/salt is copied to every managed qube. -#}
{%- from 'qubes-vpn/settings.jinja' import vpn with context %}
{%- set folder = salt['pillar.get']('qubes-vpn:folder', '/rw/config/qubes-vpn') %}
{%- for path in ('', '/profiles', '/profiles/' ~ vpn.profile) %}
"{{ folder }}{{ path }}":
  file.directory:
    - user: root
    - group: root
    - mode: '0700'
{%- endfor %}

"{{ folder }}/profiles/{{ vpn.profile }}/profile.ovpn":
  file.managed:
    - contents_pillar: qubes-vpn:profile-text
    - user: root
    - group: root
    - mode: '0600'
    - show_changes: False
    - require:
      - file: "{{ folder }}/profiles/{{ vpn.profile }}"
{%- if salt['pillar.get']('qubes-vpn:credentials') %}

"{{ folder }}/profiles/{{ vpn.profile }}/credentials":
  file.managed:
    - contents_pillar: qubes-vpn:credentials
    - user: root
    - group: root
    - mode: '0600'
    - show_changes: False
    - require:
      - file: "{{ folder }}/profiles/{{ vpn.profile }}"
{%- endif %}
