{#- The package, in the template. -#}
"qubes-vpn-package":
  pkg.installed:
    - pkgs:
      - qubes-vpn
{%- if grains['os_family'] == 'RedHat' %}
      - python3-numpy
{%- endif %}
    - skip_suggestions: True
    - install_recommends: False
