"""A server's certificate that is revoked while its tunnel is up."""

from cryptography import x509

from lab.appliance import Appliance
from lab.pki import revocations
from lab.traffic import fetch


def put(path, text):
    """Replace a file whole, as its operator's script does."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_a_revoked_server_is_left_until_the_list_is_another(lab, start_server):
    server = start_server()
    known = server.pki
    listed = lab.scratch / "crl.pem"
    put(listed, revocations(known.ca))
    profile = server.client_profile() + f"crl-verify {listed}\n"
    with Appliance(lab).lock() as appliance:
        appliance.connect(profile).wait_connected()
        # a list that says the same ends nothing: there is a new key
        put(listed, revocations(known.ca, known.client))
        server.wait_rekeyed()
        assert appliance.status()["phase"] == "connected"
        put(listed, revocations(known.ca, known.server))
        appliance.wait_log("QV-542 crl-verify: the certificate is revoked")
        assert appliance.status()["phase"] != "connected"
        # the next session does not come to be either
        appliance.wait_log("QV-542", count=2)
        # a list that cannot be read, or is none, is no list of nobody
        listed.unlink()
        appliance.wait_log("QV-549")
        assert "crl.pem: No such file or directory" in appliance.log()
        put(listed, "junk\n")
        appliance.wait_log("holds nothing whole in PEM form")
        assert appliance.log().count("connected ") == 1
        put(listed, revocations(known.ca))
        appliance.wait_connected(count=2)
        assert fetch(lab.app(1)).status == 200


def test_a_file_named_by_the_serial_number_revokes_it(lab, start_server):
    server = start_server()
    folder = lab.scratch / "revoked"
    folder.mkdir()
    (folder / "README").touch()
    certificate = server.pki.server.certificate.encode()
    serial = x509.load_pem_x509_certificate(certificate).serial_number
    profile = server.client_profile() + f"crl-verify {folder} dir\n"
    with Appliance(lab).lock() as appliance:
        appliance.connect(profile).wait_connected()
        (folder / str(serial)).touch()
        appliance.wait_log("QV-542 crl-verify: the certificate is revoked")
        assert appliance.status()["phase"] != "connected"
        (folder / str(serial)).unlink()
        appliance.wait_connected(count=2)
        assert fetch(lab.app(1)).status == 200
