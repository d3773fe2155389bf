QUBESD_SOCKET = "/var/run/qubesd.sock"
QREXEC_CLIENT = "/usr/lib/qubes/qrexec-client"
QREXEC_CLIENT_VM = "/usr/bin/qrexec-client-vm"
