"""Certificates for mutual TLS between the parties of one machine: an authority and one certificate per name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path


def make_certificates(folder: Path, names: Iterable[str], days: int = 7) -> None:
    """Write ``authority.pem`` and, for each name, ``<name>.pem`` (its certificate) and ``<name>.key`` into ``folder``.

    The authority's own key is not kept: nobody can add a party later. Between machines, have your own authority sign
    each party's own key instead; :class:`fl_utils.links.Tls` takes any PEM files whose common name is the party's.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now, above = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])

    def signed(name: x509.Name, key: ec.EllipticCurvePublicKey, authority: bool) -> bytes:
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(key)
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(minutes=5))
        builder = builder.not_valid_after(now + timedelta(days=days))
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), True)
        return builder.sign(above, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    (folder / "authority.pem").write_bytes(signed(issuer, above.public_key(), authority=True))
    for text in names:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
        (folder / f"{text}.pem").write_bytes(signed(subject, key.public_key(), authority=False))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with os.fdopen(os.open(folder / f"{text}.key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(private)
