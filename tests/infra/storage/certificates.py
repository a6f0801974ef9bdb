"""Certificates of an authority that no machine knows."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

HERE = x509.IPAddress(ip_address("127.0.0.1"))
_DAY = timedelta(days=1)
_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    crl_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    def __init__(self, directory: Path, name: str = "authority of these tests") -> None:
        self._directory = directory
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        own = self._signed(self._key, self._name, x509.BasicConstraints(ca=True, path_length=None), 0)
        self.file = self._written("authority.pem", own)

    def server(self, name: x509.GeneralName = HERE, begins: int = -1) -> ssl.SSLContext:
        """What a server of that name needs, valid for two days from so many days after today."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._context(key, self._signed(key, x509.Name([]), x509.SubjectAlternativeName([name]), begins))

    def server_with_its_own(self) -> ssl.SSLContext:
        """One that shows the certificate of the authority itself, as `openssl req -x509` makes it."""
        return self._context(self._key, x509.load_pem_x509_certificate(self.file.read_bytes()))

    def _signed(
        self, key: ec.EllipticCurvePrivateKey, subject: x509.Name, extension: x509.ExtensionType, begins: int
    ) -> x509.Certificate:
        begin = datetime.now(UTC) + begins * _DAY
        builder = x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(begin).not_valid_after(begin + 2 * _DAY).add_extension(extension, True)
        # OpenSSL wants to see them where it is strict, as Python is since 3.13
        if isinstance(extension, x509.BasicConstraints):
            builder = builder.add_extension(_SIGNS_CERTIFICATES, True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        own = self._key.public_key()
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), False)
        return builder.sign(self._key, hashes.SHA256())

    def _context(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> ssl.SSLContext:
        file = self._written("server.pem", certificate)
        with file.open("ab") as both:
            both.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _written(self, name: str, certificate: x509.Certificate) -> Path:
        file = self._directory / name
        file.write_bytes(certificate.public_bytes(Encoding.PEM))
        return file
