package tpm

import (
	"crypto/x509"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/pki/attest"
	"github.com/brevet-pki/brevet/ra"
)

// isRefusal fails the test if an error is not a refusal.
func isRefusal(t *testing.T, err error) {
	t.Helper()
	if r, ok := pki.AsRefusal(err); err != nil && (!ok || r.Detail == "" || r.Hint == "") {
		t.Fatalf("the error is not a refusal with a hint: %v", err)
	}
}

func FuzzChallenge(f *testing.F) {
	acme := newCA(f)
	a := newAuthenticator(f, Source{Name: "acme", Roots: []*x509.Certificate{acme.certificate}})
	k := newKeys(f)
	f.Add(k.public(f))
	k.endorsed = issue(f, acme, k.ek.Public(), func(*x509.Certificate) {})
	f.Add(k.public(f))
	k.ekArea = rsaArea(modulus(2048), ekAttributes(), tpm2.TPMSRSAParms{Symmetric: aes128})
	f.Add(k.public(f))
	f.Fuzz(func(t *testing.T, public []byte) {
		b, err := a.Challenge(t.Context(), ra.ChallengeRequest{Kind: pki.EvidenceTPM, Request: requestID(t, 1), Public: public}, now)
		if isRefusal(t, err); err != nil {
			return
		}
		if _, err := attest.ParseChallenge(b); err != nil {
			t.Fatalf("the challenge does not parse: %v", err)
		}
	})
}

// FuzzStatement changes everything that an attacker with a TPM can send. The attestation key of the challenge and the
// key of the request are those of a forgery.
func FuzzStatement(f *testing.F) {
	a, good := newAuthenticator(f), newForgery(f)
	r := must(attest.ParseResponse(good.evidence(f, a)))(f)
	f.Add(r.AK, r.Key, r.Statement, r.Signature)
	f.Add(r.AK, r.Key, r.Statement, []byte{0, 0x14, 0, 11, 0, 0})
	ak, key := nameOfArea(f, good.akArea), good.challengeKey
	f.Fuzz(func(t *testing.T, akArea, keyArea, statement, signature []byte) {
		changed := attest.Response{Sealed: r.Sealed, Secret: r.Secret, AK: akArea, Key: keyArea, Statement: statement, Signature: signature}
		err := checkStatement("fleet.example", changed, ak, key)
		if isRefusal(t, err); err == nil && (string(akArea) != string(r.AK) || string(keyArea) != string(r.Key) || string(statement) != string(r.Statement)) {
			t.Fatal("a forged statement is accepted")
		}
		// The content of a statement is parsed only after its signature was verified, so it is tried without.
		isRefusal(t, checkCertify("fleet.example", changed, ak))
		if p, err := attestationKey(akArea); err == nil {
			_ = p.verify(statement, signature)
		}
	})
}

func FuzzPublic(f *testing.F) {
	k := newKeys(f)
	f.Add(tpm2.Marshal(k.ekArea))
	f.Add(tpm2.Marshal(k.akArea))
	f.Add(tpm2.Marshal(rsaArea(modulus(3072), ekAttributes(), tpm2.TPMSRSAParms{Symmetric: aes128})))
	f.Fuzz(func(t *testing.T, area []byte) {
		for _, parse := range []func([]byte) (public, error){endorsementKey, attestationKey, certifiedKey} {
			_, err := parse(area)
			isRefusal(t, err)
		}
	})
}

// FuzzStructures compares the decoder with package tpm2, which must read the same from what the decoder accepts.
func FuzzStructures(f *testing.F) {
	k, good := newKeys(f), newForgery(f)
	f.Add(tpm2.Marshal(k.ekArea))
	f.Add(tpm2.Marshal(k.akArea))
	f.Add(tpm2.Marshal(rsaArea(modulus(2048), akAttributes(), tpm2.TPMSRSAParms{Scheme: tpm2.TPMTRSAScheme{
		Scheme: tpm2.TPMAlgRSAPSS, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSAPSS, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: tpm2.TPMAlgSHA256}),
	}})))
	r := must(attest.ParseResponse(good.evidence(f, newAuthenticator(f))))(f)
	f.Add(r.Statement)
	f.Add(r.Signature)
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := parseArea(b); err == nil {
			compareArea(t, b, a)
		}
		if s, err := parseSignature(b); err == nil {
			other := must(tpm2.Unmarshal[tpm2.TPMTSignature](b))(t)
			if string(tpm2.Marshal(other)) != string(b) || other.SigAlg != s.algorithm {
				t.Fatalf("%x is read as %+v, and by package tpm2 as %+v", b, s, other)
			}
		}
		rest, ok := strings.CutPrefix(string(b), magic+"\x80\x17")
		if c, err := parseCertification([]byte(rest)); ok && err == nil {
			other := must(tpm2.Unmarshal[tpm2.TPMSAttest](b))(t)
			certified := must(other.Attested.Certify())(t)
			if string(other.ExtraData.Buffer) != string(c.qualifying) || string(certified.Name.Buffer) != string(c.name) {
				t.Fatalf("%x is read as %+v, and by package tpm2 as %+v", b, c, other)
			}
		}
	})
}

func compareArea(t *testing.T, b []byte, a area) {
	other := must(tpm2.Unmarshal[tpm2.TPMTPublic](b))(t)
	same := string(tpm2.Marshal(other)) == string(b) && other.Type == a.kind && other.NameAlg == a.nameAlg
	if a.kind == tpm2.TPMAlgRSA {
		parameters, modulus := must(other.Parameters.RSADetail())(t), must(other.Unique.RSA())(t)
		same = same && uint16(parameters.KeyBits) == a.bits && parameters.Exponent == a.exponent && string(modulus.Buffer) == string(a.modulus) &&
			parameters.Scheme.Scheme == a.scheme.algorithm && parameters.Symmetric.Algorithm == a.cipher.algorithm
	} else {
		parameters, point := must(other.Parameters.ECCDetail())(t), must(other.Unique.ECC())(t)
		same = same && parameters.CurveID == a.curve && string(point.X.Buffer) == string(a.x) && string(point.Y.Buffer) == string(a.y) &&
			parameters.Scheme.Scheme == a.scheme.algorithm && parameters.Symmetric.Algorithm == a.cipher.algorithm
	}
	o := other.ObjectAttributes
	for bit, set := range map[attributes]bool{
		fixedTPM: o.FixedTPM, fixedParent: o.FixedParent, sensitiveDataOrigin: o.SensitiveDataOrigin, userWithAuth: o.UserWithAuth,
		encryptedDuplication: o.EncryptedDuplication, restricted: o.Restricted, decrypt: o.Decrypt, sign: o.SignEncrypt,
	} {
		same = same && a.attributes&bit != 0 == set
	}
	if !same {
		t.Fatalf("%x is read as %+v, and by package tpm2 as %+v", b, a, other)
	}
}

func FuzzCertificate(f *testing.F) {
	k, acme := newKeys(f), newCA(f)
	f.Add(issue(f, acme, k.ek.Public(), func(*x509.Certificate) {}))
	f.Add(issue(f, acme, k.ek.Public(), func(c *x509.Certificate) { c.ExtraExtensions = nil }))
	f.Fuzz(func(t *testing.T, stored []byte) {
		_, _, err := parseCertificate(stored, k.ek.Public())
		isRefusal(t, err)
		_, _, _ = parseAltNames(stored)
	})
}

func FuzzState(f *testing.F) {
	f.Add(must(state{ak: []byte("name"), endorsement: endorsement{"acme", product{"a", "b", "c"}}}.marshal())(f))
	f.Fuzz(func(t *testing.T, payload []byte) {
		s, err := parseState(payload)
		if err == nil && string(must(s.marshal())(t)) != string(payload) {
			t.Fatalf("%x is another state after encoding it again", payload)
		}
	})
}
