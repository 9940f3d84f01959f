package enrollment

import (
	"crypto"
	"crypto/aes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/pki/attest"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// oidEKCertificate is tcg-kp-EKCertificate (TCG EK Credential Profile 2.5, section 3.5.11).
var oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1}

// simulatedTPM makes the messages of a TPM 2.0 in software. Its endorsement key is P-256, because a new RSA key for each
// device would take a tenth of a second.
type simulatedTPM struct {
	ek     *ecdh.PrivateKey
	ak     *ecdsa.PrivateKey
	akArea []byte // TPMT_PUBLIC
	akName []byte
}

// giveTPM puts the key of a device into a new TPM with a certified endorsement key.
func (s *Issuers) giveTPM(d *Device, key *ecdsa.PrivateKey) error {
	t, described, err := s.newTPM()
	if err != nil {
		return err
	}
	if d.public, err = described.Marshal(); err != nil {
		return err
	}
	keyArea, err := area(&key.PublicKey, tpm2.TPMAObject{SignEncrypt: true}, tpm2.TPMSECCParms{})
	if err != nil {
		return err
	}
	d.challenge = brevetv1.EvidenceKind_EVIDENCE_KIND_TPM
	d.prove = func(_ pki.RequestID, challenge []byte) (*brevetv1.Evidence, error) {
		response, err := t.respond(s.trustDomain, challenge, keyArea)
		return &brevetv1.Evidence{Kind: &brevetv1.Evidence_Tpm{Tpm: &brevetv1.TPMEvidence{Response: response}}}, err
	}
	return nil
}

// newTPM makes a TPM, and returns what it says about itself.
func (s *Issuers) newTPM() (*simulatedTPM, attest.Device, error) {
	var about attest.Device
	ek, err := newKey()
	if err != nil {
		return nil, about, err
	}
	t := &simulatedTPM{}
	if t.ak, err = newKey(); err != nil {
		return nil, about, err
	}
	if t.ek, err = ek.ECDH(); err != nil {
		return nil, about, err
	}
	cipher := tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES, KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
		Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
	scheme := tpm2.TPMTECCScheme{
		Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
	}
	ekArea, err := area(&ek.PublicKey, tpm2.TPMAObject{Restricted: true, Decrypt: true}, tpm2.TPMSECCParms{Symmetric: cipher})
	if err != nil {
		return nil, about, err
	}
	akArea, err := area(&t.ak.PublicKey, tpm2.TPMAObject{Restricted: true, SignEncrypt: true}, tpm2.TPMSECCParms{Scheme: scheme})
	if err != nil {
		return nil, about, err
	}
	t.akArea, t.akName = tpm2.Marshal(akArea), nameOf(akArea)
	certificate, err := s.line.issue(&x509.Certificate{
		Subject: pkix.Name{SerialNumber: rand.Text()}, KeyUsage: x509.KeyUsageKeyAgreement,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidEKCertificate},
	}, ek.Public())
	return t, attest.Device{EK: tpm2.Marshal(ekArea), EKCertificate: certificate, AK: t.akArea}, err
}

// area returns the public area of a P-256 key that was generated in a TPM and cannot leave it. attributes are its further
// attributes.
func area(key *ecdsa.PublicKey, attributes tpm2.TPMAObject, p tpm2.TPMSECCParms) (tpm2.TPMTPublic, error) {
	point, err := key.Bytes() // 4, X and Y (SEC 1, section 2.3.3)
	if err != nil {
		return tpm2.TPMTPublic{}, err
	}
	attributes.FixedTPM, attributes.FixedParent, attributes.SensitiveDataOrigin, attributes.UserWithAuth = true, true, true, true
	p.CurveID = tpm2.TPMECCNistP256
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &p),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}, nil
}

// nameOf returns the name of an object: the identifier of SHA-256, and the hash of the public area (TPM 2.0 Library, Part
// 1, section 16).
func nameOf(area tpm2.TPMTPublic) []byte {
	hash := sha256.Sum256(tpm2.Marshal(area))
	return append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), hash[:]...)
}

// respond decrypts a challenge, and certifies the key with a public area for a server of a trust domain.
func (t *simulatedTPM) respond(trustDomain string, challenge []byte, key tpm2.TPMTPublic) ([]byte, error) {
	c, err := attest.ParseChallenge(challenge)
	if err != nil {
		return nil, err
	}
	r := attest.Response{Sealed: c.Sealed, AK: t.akArea, Key: tpm2.Marshal(key)}
	if r.Secret, err = t.activate(c); err != nil {
		return nil, fmt.Errorf("decrypt the challenge for a simulated TPM: %w", err)
	}
	r.Statement = tpm2.Marshal(tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify,
		ExtraData: tpm2.TPM2BData{Buffer: attest.QualifyingData(trustDomain, c.Sealed)},
		Attested:  tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: tpm2.TPM2BName{Buffer: nameOf(key)}}),
	})
	digest := sha256.Sum256(r.Statement)
	x, y, err := ecdsa.Sign(rand.Reader, t.ak, digest[:])
	if err != nil {
		return nil, err
	}
	r.Signature = tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: x.Bytes()}, SignatureS: tpm2.TPM2BECCParameter{Buffer: y.Bytes()},
		}),
	})
	return r.Marshal()
}

// activate returns the secret of a challenge, as TPM2_ActivateCredential does (TPM 2.0 Library, Part 1, section 24). It
// does not verify the integrity of the challenge.
func (t *simulatedTPM) activate(c attest.Challenge) ([]byte, error) {
	point, err := tpm2.Unmarshal[tpm2.TPMSECCPoint](c.Secret)
	if err != nil {
		return nil, err
	}
	ephemeral, err := ecdh.P256().NewPublicKey(append(append([]byte{4}, point.X.Buffer...), point.Y.Buffer...))
	if err != nil {
		return nil, err
	}
	shared, err := t.ek.ECDH(ephemeral)
	if err != nil {
		return nil, err
	}
	seed := tpm2.KDFe(crypto.SHA256, shared, "IDENTITY", point.X.Buffer, t.ek.PublicKey().Bytes()[1:33], 256)
	const prefix = 2 + sha256.Size // the HMAC, after its length
	if len(c.Credential) < prefix {
		return nil, errors.New("the credential is too short")
	}
	content := append([]byte(nil), c.Credential[prefix:]...)
	if err := decrypt(tpm2.KDFa(crypto.SHA256, seed, "STORAGE", t.akName, nil, 128), content); err != nil {
		return nil, err
	}
	secret, err := tpm2.Unmarshal[tpm2.TPM2BDigest](content)
	if err != nil {
		return nil, err
	}
	return secret.Buffer, nil
}

// decrypt decrypts data in place, with AES in CFB mode and an initialization vector of zeros.
func decrypt(key, data []byte) error {
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	previous, stream := make([]byte, aes.BlockSize), make([]byte, aes.BlockSize)
	for len(data) > 0 {
		block.Encrypt(stream, previous)
		n := copy(previous, data)
		subtle.XORBytes(data, data[:n], stream)
		data = data[n:]
	}
	return nil
}
