"""Enrolment: a one-time token becomes a certificate.

The order matters: the server's CA is fetched and compared with the digest in the token before the secret is sent, and
the key is made here and stays here. Imports cryptography, so it never runs in the resident agent.
"""

from __future__ import annotations

import platform
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

import fleetfit
from fleetfit.agent.disk import prove_room
from fleetfit.agent.identity import Identity, save_identity
from fleetfit.core.errors import IntegrityError
from fleetfit.proto.channels import CLIENT_OPTIONS, people_credentials
from fleetfit.proto.status import from_rpc_error
from fleetfit.proto.trust import fetch_ca, parse_token, split_address
from fleetfit.proto.v1 import enrolment_pb2, enrolment_pb2_grpc
from fleetfit.proto.versions import PROTOCOL_VERSION

_TIMEOUT_S = 30.0


def enrol(server: str, token_text: str, state: Path, *, name: str = "") -> Identity:
    """Enrol this device at `server` and keep its identity in `state`.

    Raises InvalidInput for a token that is not whole, Unavailable where no server answers, PermissionDenied where the
    server is not the token's, ExhaustedResource where `state` has no room, and what the server says about a token that
    was used, is too old, or is not known.
    """
    token = parse_token(token_text)
    ca_pem = fetch_ca(server, token.ca_digest)
    # Before the token is used up: it works once.
    prove_room(state)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, (name or platform.node() or "device")[:64])])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    with grpc.secure_channel(server, people_credentials(ca_pem), options=CLIENT_OPTIONS) as channel:
        try:
            answer: enrolment_pb2.EnrolResponse = enrolment_pb2_grpc.EnrolmentStub(channel).Enrol(
                enrolment_pb2.EnrolRequest(
                    secret=token.secret,
                    signing_request_pem=request.public_bytes(Encoding.PEM).decode(),
                    name=name,
                    agent_version=fleetfit.__version__,
                    protocol_version=PROTOCOL_VERSION,
                ),
                timeout=_TIMEOUT_S,
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, peer=f"the server at {server}") from error
    certificate = x509.load_pem_x509_certificate(answer.certificate_pem.encode())
    if certificate.public_key() != key.public_key():
        raise IntegrityError("the server answered with a certificate for another key; update the server and try again")
    identity = Identity(
        device_id=answer.device_id,
        name=answer.name,
        server=server,
        agent_address=_complete(answer.agent_address, server),
        key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate_pem=answer.certificate_pem.encode(),
        ca_pem=ca_pem,
    )
    save_identity(state, identity)
    return identity


def _complete(agent_address: str, server: str) -> str:
    """The agents' address with the server's host where the answer left the host open (`:7601`)."""
    host, _, port = agent_address.rpartition(":")
    if host:
        return agent_address
    own_host = split_address(server)[0]
    return f"[{own_host}]:{port}" if ":" in own_host else f"{own_host}:{port}"
