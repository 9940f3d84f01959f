package tpm

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/pki/attest"
)

// Endorsement is the endorsement key of a TPM, which tells it apart from all others.
type Endorsement struct {
	// Public is the public area (TPMT_PUBLIC).
	Public []byte
	// Certificate is the manufacturer's certificate in DER. It is empty if the TPM has none that crypto/x509 can parse.
	Certificate []byte
	// Hash is the SHA-256 of the SubjectPublicKeyInfo. Policies name a TPM by it.
	Hash [32]byte
}

// Endorsement returns the endorsement key. If the TPM has certificates for several, it returns the first in a fixed
// order of types: RSA-2048, P-256, P-384. The first call may take a minute, because the TPM generates the key from its
// seed.
func (d *Device) Endorsement() (Endorsement, error) {
	var e Endorsement
	err := d.do(func(s *session) (err error) {
		e, err = d.endorsement(s)
		return err
	})
	return e, err
}

// endorsement chooses and describes the endorsement key, and remembers it.
func (d *Device) endorsement(s *session) (Endorsement, error) {
	if len(d.known.Public) > 0 {
		return d.known, nil
	}
	candidates := templates
	if d.ek != nil {
		candidates = []template{*d.ek}
	}
	for _, t := range candidates {
		certificate, err := s.certificate(t.index)
		if err != nil {
			continue
		}
		e, err := s.describe(t, certificate)
		if err != nil {
			return e, err
		}
		if len(e.Certificate) > 0 { // the certificate is for this key
			d.ek, d.known = &t, e
			return e, nil
		}
	}
	e, err := s.describe(candidates[0], nil)
	if err == nil {
		d.ek, d.known = &candidates[0], e
	}
	return e, err
}

// describe makes the endorsement key of a template and describes it. It drops a certificate for another key.
func (s *session) describe(t template, certificate *x509.Certificate) (Endorsement, error) {
	o, err := s.primary(tpm2.TPMRHEndorsement, t.public())
	if err != nil {
		return Endorsement{}, err
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](o.public)
	if err != nil {
		return Endorsement{}, fmt.Errorf("the endorsement key of the TPM does not parse: %w", err)
	}
	key, err := tpm2.Pub(*area)
	if err != nil {
		return Endorsement{}, fmt.Errorf("the endorsement key of the TPM does not parse: %w", err)
	}
	spki, err := pki.MarshalKey(key)
	if err != nil {
		return Endorsement{}, fmt.Errorf("the endorsement key of the TPM cannot be used: %w", err)
	}
	e := Endorsement{Public: o.public, Hash: sha256.Sum256(spki)}
	// Some manufacturers mark RSA keys with id-RSAES-OAEP, which crypto/x509 does not parse.
	if certificate != nil && (certificate.PublicKey == nil || bytes.Equal(certificate.RawSubjectPublicKeyInfo, spki)) {
		e.Certificate = certificate.Raw
	}
	return e, s.flush(o)
}

// Limits of a certificate in the TPM.
const (
	maxCertificate = 4 << 10
	readSize       = 512 // bytes of one TPM2_NV_Read, which every TPM supports
)

// certificate reads a certificate from an index of the TPM.
func (s *session) certificate(index tpm2.TPMHandle) (*x509.Certificate, error) {
	r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(s.tpm)
	if err != nil {
		return nil, explain("find a certificate", err)
	}
	public, err := r.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("the description of a certificate in the TPM does not parse: %w", err)
	}
	if public.DataSize > maxCertificate {
		return nil, fmt.Errorf("a certificate in the TPM has %d bytes, and %d are allowed", public.DataSize, maxCertificate)
	}
	nv := tpm2.NamedHandle{Handle: index, Name: r.NVName}
	auth := tpm2.AuthHandle{Handle: index, Name: r.NVName, Auth: tpm2.PasswordAuth(nil)}
	if !public.Attributes.AuthRead {
		auth = tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	}
	var stored []byte
	for offset := uint16(0); offset < public.DataSize; offset += readSize {
		size := min(readSize, public.DataSize-offset)
		r, err := tpm2.NVRead{AuthHandle: auth, NVIndex: nv, Size: size, Offset: offset}.Execute(s.tpm)
		if err != nil {
			return nil, explain("read a certificate", err)
		}
		stored = append(stored, r.Data.Buffer...)
	}
	der, err := attest.CertificateDER(stored)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Describe returns what a server needs to make a challenge for the TPM: an encoded [attest.Device].
func (d *Device) Describe() ([]byte, error) {
	var m attest.Device
	err := d.do(func(s *session) error {
		e, err := d.endorsement(s)
		if err != nil {
			return err
		}
		ak, err := s.primary(tpm2.TPMRHOwner, attestationTemplate())
		m = attest.Device{EK: e.Public, EKCertificate: e.Certificate, AK: ak.public}
		return err
	})
	if err != nil {
		return nil, err
	}
	return m.Marshal()
}

// Respond responds to a challenge for a key in this TPM. trustDomain is the one that the device enrolls in. challenge is
// an encoded [attest.Challenge], and the result an encoded [attest.Response].
func (d *Device) Respond(trustDomain string, challenge []byte, key *Key) ([]byte, error) {
	c, err := attest.ParseChallenge(challenge)
	if err != nil {
		return nil, fmt.Errorf("the server's challenge for the TPM is malformed: %w", err)
	}
	if key.device != d {
		return nil, errors.New("the key is in another TPM than the one that responds to the challenge")
	}
	r := attest.Response{Sealed: c.Sealed, Key: key.area}
	err = d.do(func(s *session) error {
		if _, err := d.endorsement(s); err != nil {
			return err
		}
		ek, err := s.primary(tpm2.TPMRHEndorsement, d.ek.public())
		if err != nil {
			return err
		}
		ak, err := s.primary(tpm2.TPMRHOwner, attestationTemplate())
		if err != nil {
			return err
		}
		r.AK = ak.public
		if r.Secret, err = s.activate(*d.ek, ek, ak, c); err != nil {
			return err
		}
		if err := s.flush(ek); err != nil {
			return err
		}
		r.Statement, r.Signature, err = s.certify(key, ak, attest.QualifyingData(trustDomain, c.Sealed))
		return err
	})
	if err != nil {
		return nil, err
	}
	return r.Marshal()
}

// activate decrypts the secret of a challenge with TPM2_ActivateCredential.
func (s *session) activate(t template, ek, ak object, c attest.Challenge) ([]byte, error) {
	auth := ek.auth()
	if t.policy {
		auth.Auth = tpm2.Policy(tpm2.TPMAlgSHA256, 16, secretOfEndorsement)
	}
	r, err := tpm2.ActivateCredential{
		ActivateHandle: ak.auth(), KeyHandle: auth,
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.Credential}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: c.Secret},
	}.Execute(s.tpm)
	if err != nil {
		return nil, explain("decrypt the server's challenge, which may be for another TPM", err)
	}
	return r.CertInfo.Buffer, nil
}

// secretOfEndorsement fulfills the policy of an endorsement key in a session: the password of the endorsement hierarchy,
// which is empty.
func secretOfEndorsement(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	hierarchy := tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}
	_, err := tpm2.PolicySecret{AuthHandle: hierarchy, PolicySession: session, NonceTPM: nonce}.Execute(t)
	return err
}

// certify returns what the attestation key states about a key, and the signature.
func (s *session) certify(key *Key, ak object, qualifying []byte) (statement, signature []byte, err error) {
	certified, err := key.load(s)
	if err != nil {
		return nil, nil, err
	}
	r, err := tpm2.Certify{
		ObjectHandle: certified.auth(), SignHandle: ak.auth(), QualifyingData: tpm2.TPM2BData{Buffer: qualifying},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(s.tpm)
	if err != nil {
		return nil, nil, explain("certify the key", err)
	}
	return r.CertifyInfo.Bytes(), tpm2.Marshal(r.Signature), nil
}
