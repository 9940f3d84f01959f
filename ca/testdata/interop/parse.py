"""parse.py CHAIN ROOT: reads every extension with Python's cryptography, and verifies each signature."""
import sys

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

end = "-----END CERTIFICATE-----\n"
text = open(sys.argv[1]).read() + open(sys.argv[2]).read()
chain = [x509.load_pem_x509_certificate((part + end).encode()) for part in text.split(end)[:-1]]
for cert, issuer in zip(chain, chain[1:] + chain[-1:]):
    issuer.public_key().verify(cert.signature, cert.tbs_certificate_bytes, ec.ECDSA(cert.signature_hash_algorithm))
    assert cert.issuer == issuer.subject
    for extension in cert.extensions:
        assert not isinstance(extension.value, x509.UnrecognizedExtension), extension
print(chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.UniformResourceIdentifier)[0])
