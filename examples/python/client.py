#!/usr/bin/python3
"""A client of Brevet in Python: it enrolls with a token, renews over mutual TLS, lists certificates and revokes one.

It needs nothing of Brevet but the proto files. make.sh generates the code that it imports, with protoc and the gRPC plugin.

A credential is a directory with key.pem, cert.pem (the certificate and its chain) and root.pem. Before each request, the
client stores the new key and the request ID there. A run that was interrupted repeats the same request, and gets the same
certificate.
"""

import argparse
import base64
import hashlib
import os
import pathlib
import random
import sys
import time

import google
import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HERE = pathlib.Path(__file__).resolve().parent
GENERATED = pathlib.Path(os.environ.get("BREVET_GENERATED", HERE / "generated"))
sys.path.insert(0, str(GENERATED))
google.__path__.append(str(GENERATED / "google"))  # beside google.protobuf, which is installed

from brevet.v1 import certificate_pb2, certificate_pb2_grpc  # noqa: E402
from brevet.v1 import enrollment_pb2, enrollment_pb2_grpc  # noqa: E402
from brevet.v1 import errors_pb2  # noqa: E402
from brevet.v1 import revocation_pb2, revocation_pb2_grpc, types_pb2  # noqa: E402
from google.protobuf import duration_pb2  # noqa: E402
from google.rpc import status_pb2  # noqa: E402

TIMEOUT = 30  # seconds, for one call
TRIES = 5


class Token:
    """What the text of an enrollment token holds: "brevet1." and, in base64url, secret, fingerprint, names and checksum."""

    def __init__(self, text):
        body = "".join(text.split()).removeprefix("brevet1.")
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))[:-4]
        self.secret, self.fingerprint, length, names = raw[:32], raw[32:64], raw[64], raw[65:]
        self.trust_domain, self.server = names[:length].decode(), names[length:].decode()


def channel(server, root, credential=None):
    """Connect to a server under a root, as the holder of a credential or as nobody."""
    key = chain = None
    if credential:
        key, chain = (credential / "key.pem").read_bytes(), (credential / "cert.pem").read_bytes()
    return grpc.secure_channel(server, grpc.ssl_channel_credentials(root, key, chain))


def details(error):
    """Return the rule, the hint and the delay among the details of an error; None for each that is missing."""
    rule = hint = delay = None
    for name, value in error.trailing_metadata() or ():
        if name != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            refusal = errors_pb2.Refusal()
            if detail.Unpack(refusal):
                rule, hint = refusal.rule, refusal.hint
            if detail.type_url.endswith("/google.rpc.RetryInfo"):
                # Its one field is a Duration, after a tag and a length of one byte each.
                delay = duration_pb2.Duration.FromString(detail.value[2:]).ToTimedelta().total_seconds()
    return rule, hint, delay


def call(method, request):
    """Make a call, and repeat it if docs/errors.md says that the same call may pass."""
    for attempt in range(TRIES):
        try:
            return method(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            rule, hint, delay = details(error)
            passes = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            passes = passes or error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and delay is not None
            if not passes or attempt == TRIES - 1:
                sys.exit(f"client.py: {error.code().name} [{rule}]: {error.details()}")
            time.sleep((delay or 2**attempt) + random.random())


def pending(directory):
    """Return the request ID and the key of the request under way, which are stored before the call."""
    id_file, key_file = directory / "pending.id", directory / "pending.key"
    if not id_file.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write(key_file, pem)
        write(id_file, os.urandom(16))
    key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    # Names come from the server, so the request asks for none.
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return id_file.read_bytes(), csr.public_bytes(serialization.Encoding.DER)


def write(path, data):
    """Write a file that only its owner can read, whole or not at all."""
    temporary = path.with_suffix(".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def pem(*certificates):
    return b"".join(
        x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM) for der in certificates
    )


def install(directory, credential, server):
    """Put a credential in use, and print when it is to be renewed: at a random moment in the window."""
    write(directory / "cert.pem", pem(credential.certificate, *credential.chain.certificates))
    write(directory / "root.pem", pem(*credential.trust_bundle.roots))
    write(directory / "server", server.encode())
    (directory / "pending.key").rename(directory / "key.pem")
    (directory / "pending.id").unlink()
    window = credential.renewal_window
    start, end = window.start_time.ToDatetime(), window.end_time.ToDatetime()
    certificate = x509.load_der_x509_certificate(credential.certificate)
    print(f"{certificate.serial_number:X} renew at {start + random.random() * (end - start):%Y-%m-%dT%H:%M:%SZ}")


def enroll(arguments):
    token = Token(pathlib.Path(arguments.token_file).read_text(encoding="ascii"))
    root = pathlib.Path(arguments.root).read_bytes()
    if hashlib.sha256(x509.load_pem_x509_certificate(root).public_bytes(serialization.Encoding.DER)).digest() != token.fingerprint:
        sys.exit(f"client.py: {arguments.root} is not the root that the token names")
    directory = pathlib.Path(arguments.credential)
    directory.mkdir(mode=0o700, exist_ok=True)
    request_id, csr = pending(directory)
    evidence = [enrollment_pb2.Evidence(token=enrollment_pb2.TokenEvidence(secret=token.secret))]
    with channel(token.server, root) as connection:
        service = enrollment_pb2_grpc.EnrollmentServiceStub(connection)
        request = enrollment_pb2.EnrollRequest(request_id=request_id, evidence=evidence, csr=csr)
        install(directory, call(service.Enroll, request).credential, token.server)


def connect(arguments):
    """Connect with the credential of an earlier run."""
    directory = pathlib.Path(arguments.credential)
    server = (directory / "server").read_text(encoding="ascii")
    return directory, server, channel(server, (directory / "root.pem").read_bytes(), directory)


def renew(arguments):
    directory, server, connection = connect(arguments)
    request_id, csr = pending(directory)
    with connection:
        service = enrollment_pb2_grpc.EnrollmentServiceStub(connection)
        response = call(service.Renew, enrollment_pb2.RenewRequest(request_id=request_id, csr=csr))
    install(directory, response.credential, server)


def list_certificates(arguments):
    _, _, connection = connect(arguments)
    request = certificate_pb2.ListCertificatesRequest(page_size=100)
    if arguments.identity:
        request.selection.identity = arguments.identity
    with connection:
        service = certificate_pb2_grpc.CertificateServiceStub(connection)
        while True:
            page = call(service.ListCertificates, request)
            for certificate in page.certificates:
                state = certificate_pb2.CertificateState.Name(certificate.state).removeprefix("CERTIFICATE_STATE_")
                print(int.from_bytes(certificate.serial, "big").__format__("X"), certificate.identity, state.lower())
            request.page_token = page.next_page_token
            if not request.page_token:
                return


def revoke(arguments):
    _, _, connection = connect(arguments)
    # With the request ID the server carries out the repeats that call() makes once, and answers each.
    request = revocation_pb2.RevokeCertificateRequest(
        request_id=os.urandom(16),
        serial=int(arguments.serial, 16).to_bytes(20, "big"),
        reason=types_pb2.RevocationReason.Value("REVOCATION_REASON_" + arguments.reason.upper()),
    )
    with connection:
        service = revocation_pb2_grpc.RevocationServiceStub(connection)
        affected = call(service.RevokeCertificate, request).affected
    print(f"revoked {affected.valid + affected.expired}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, run, flags in (
        ("enroll", enroll, ("token-file", "root")),
        ("renew", renew, ()),
        ("list", list_certificates, ()),
        ("revoke", revoke, ("serial",)),
    ):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--credential", required=True, help="directory of the credential")
        for flag in flags:
            command.add_argument("--" + flag, required=True)
        if name == "list":
            command.add_argument("--identity", help="only this identity's certificates")
        if name == "revoke":
            command.add_argument("--reason", default="unspecified", help="such as key_compromise")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
