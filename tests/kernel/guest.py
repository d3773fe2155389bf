import time, sys
t=time.monotonic()
from lab import Lab
from lab.appliance import Appliance
from lab.openvpn import Server, Settings
from lab.traffic import fetch, Flood
import subprocess
print("uname", subprocess.run(["uname","-r"],capture_output=True,text=True).stdout, flush=True)
with Lab() as lab:
    print("lab", time.monotonic()-t, flush=True)
    server = Server(lab.internet, lab.scratch, Settings())
    with server, Appliance(lab).lock() as app:
        print("server", time.monotonic()-t, flush=True)
        app.connect(server.client_profile())
        try:
            app.wait_connected(60)
            print("connected", time.monotonic()-t, flush=True)
            print(app.status(), flush=True)
            print(fetch(lab.app(1)), flush=True)
        except Exception as e:
            print("ERR", e, flush=True)
        print(app.log())
        print(server.log[-1500:])
        print(lab.vpn.run(["ip","-d","-s","link"]).stdout[-3000:])
print("end", time.monotonic()-t, flush=True)
