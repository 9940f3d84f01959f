package tpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/pki/attest"
	"github.com/brevet-pki/brevet/ra"
)

// request asks for a challenge.
func request(t testing.TB, a *Authenticator, public []byte) error {
	t.Helper()
	_, err := a.Challenge(t.Context(), ra.ChallengeRequest{Kind: pki.EvidenceTPM, Request: requestID(t, 1), Public: public}, now)
	return err
}

// keys are the keys of a TPM in software.
type keys struct {
	ek, ak   *ecdsa.PrivateKey
	ekArea   tpm2.TPMTPublic
	akArea   tpm2.TPMTPublic
	endorsed []byte
}

func newKeys(t testing.TB) *keys {
	t.Helper()
	k := &keys{ek: newP256(t), ak: newP256(t)}
	k.ekArea = eccArea(t, &k.ek.PublicKey, ekAttributes(), tpm2.TPMSECCParms{Symmetric: aes128})
	k.akArea = eccArea(t, &k.ak.PublicKey, akAttributes(), ecdsaScheme(tpm2.TPMAlgSHA256))
	return k
}

func (k *keys) public(t testing.TB) []byte {
	t.Helper()
	return must(attest.Device{EK: tpm2.Marshal(k.ekArea), EKCertificate: k.endorsed, AK: tpm2.Marshal(k.akArea)}.Marshal())(t)
}

func TestChallengeRefusesKeys(t *testing.T) {
	a := newAuthenticator(t)
	rsaParameters := tpm2.TPMSRSAParms{Symmetric: aes128}
	p521 := must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(t)
	for name, c := range map[string]struct {
		edit func(*keys)
		rule pki.Rule
	}{
		"nothing is wrong":      {func(*keys) {}, ""},
		"an RSA key":            {func(k *keys) { k.ekArea = rsaArea(modulus(2048), ekAttributes(), rsaParameters) }, ""},
		"EK is not restricted":  {func(k *keys) { k.ekArea.ObjectAttributes.Restricted = false }, pki.RuleEvidenceAlgorithm},
		"EK can be exported":    {func(k *keys) { k.ekArea.ObjectAttributes.FixedTPM = false }, pki.RuleEvidenceAlgorithm},
		"EK cannot decrypt":     {func(k *keys) { k.ekArea.ObjectAttributes.Decrypt = false }, pki.RuleEvidenceAlgorithm},
		"EK signs":              {func(k *keys) { k.ekArea.ObjectAttributes.SignEncrypt = true }, pki.RuleEvidenceAlgorithm},
		"EK has no cipher":      {func(k *keys) { k.ekArea = eccArea(t, &k.ek.PublicKey, ekAttributes(), tpm2.TPMSECCParms{}) }, pki.RuleEvidenceAlgorithm},
		"EK has names of SHA-1": {func(k *keys) { k.ekArea.NameAlg = tpm2.TPMAlgSHA1 }, pki.RuleEvidenceAlgorithm},
		"EK is RSA-1024":        {func(k *keys) { k.ekArea = rsaArea(modulus(1024), ekAttributes(), rsaParameters) }, pki.RuleEvidenceAlgorithm},
		"EK is RSA-2047":        {func(k *keys) { k.ekArea = rsaArea(modulus(2047), ekAttributes(), rsaParameters) }, pki.RuleEvidenceAlgorithm},
		"EK is RSA-5000":        {func(k *keys) { k.ekArea = rsaArea(modulus(5000), ekAttributes(), rsaParameters) }, pki.RuleEvidenceAlgorithm},
		"EK has the exponent 3": {func(k *keys) {
			k.ekArea = rsaArea(modulus(2048), ekAttributes(), tpm2.TPMSRSAParms{Symmetric: aes128, Exponent: 3})
		}, pki.RuleEvidenceAlgorithm},
		"EK is P-521":            {func(k *keys) { k.ekArea = otherCurve(t, &k.ek.PublicKey, tpm2.TPMECCNistP521) }, pki.RuleEvidenceAlgorithm},
		"EK is not on its curve": {func(k *keys) { k.ekArea = otherCurve(t, &k.ek.PublicKey, tpm2.TPMECCNistP384) }, pki.RuleEvidenceAlgorithm},
		"AK is not restricted":   {func(k *keys) { k.akArea.ObjectAttributes.Restricted = false }, pki.RuleEvidenceAlgorithm},
		"AK needs a policy":      {func(k *keys) { k.akArea.ObjectAttributes.UserWithAuth = false }, pki.RuleEvidenceAlgorithm},
		"AK is the EK":           {func(k *keys) { k.akArea = k.ekArea }, pki.RuleEvidenceAlgorithm},
		"a certificate of another key": {func(k *keys) {
			k.endorsed = issue(t, nil, p521.Public(), func(*x509.Certificate) {})
		}, pki.RuleEvidenceKey},
		"a certificate that does not parse": {func(k *keys) { k.endorsed = []byte("\x30\x03\x02\x01\x01") }, pki.RuleEvidenceMalformed},
	} {
		k := newKeys(t)
		c.edit(k)
		err := request(t, a, k.public(t))
		if c.rule == "" && err != nil {
			t.Errorf("%s: %v", name, err)
		} else if c.rule != "" {
			refused(t, name, err, c.rule)
		}
	}
	good := newKeys(t).public(t)
	refused(t, "nothing", request(t, a, nil), pki.RuleEvidenceMalformed)
	refused(t, "a message that is cut off", request(t, a, good[:len(good)-1]), pki.RuleEvidenceMalformed)
	refused(t, "a long message", request(t, a, make([]byte, attest.MaxMessage+1)), pki.RuleEvidenceSize)
	refused(t, "keys that do not parse", request(t, a, make([]byte, 6)), pki.RuleEvidenceMalformed)
}

// modulus returns an RSA public key of n bits, whose private key does not exist.
func modulus(n int) *rsa.PublicKey {
	one := big.NewInt(1)
	return &rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(one, uint(n-1)), one), E: exponent}
}

func otherCurve(t testing.TB, key *ecdsa.PublicKey, curve tpm2.TPMECCCurve) tpm2.TPMTPublic {
	t.Helper()
	area := eccArea(t, key, ekAttributes(), tpm2.TPMSECCParms{Symmetric: aes128})
	area.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: aes128, CurveID: curve})
	return area
}

// ca is a manufacturer's CA.
type ca struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// issue returns a certificate, in DER, for the endorsement key of a TPM. Without an issuer, a new key signs it.
func issue(t testing.TB, by *ca, key any, edit func(*x509.Certificate)) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), BasicConstraintsValid: true,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidEKCertificate}, ExtraExtensions: []pkix.Extension{describe(t, true, "id:41434D45", "one", "id:1")},
	}
	edit(template)
	signer, parent := newP256(t), template
	if by != nil {
		signer, parent = by.key, by.certificate
	}
	return must(x509.CreateCertificate(rand.Reader, template, parent, key, signer))(t)
}

func newCA(t testing.TB) *ca {
	t.Helper()
	c := &ca{key: newP256(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Acme TPM CA"}, NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	c.certificate = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, c.key.Public(), c.key))(t)))(t)
	return c
}

// describe returns a subject alternative name with a directory name that describes a TPM.
func describe(t testing.TB, critical bool, manufacturer, model, version string) pkix.Extension {
	t.Helper()
	var names pkix.RDNSequence
	for i, value := range []string{manufacturer, model, version} {
		names = append(names, pkix.RelativeDistinguishedNameSET{{Type: []asn1.ObjectIdentifier{oidManufacturer, oidModel, oidVersion}[i], Value: value}})
	}
	return altName(t, critical, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: must(asn1.Marshal(names))(t)})
}

func altName(t testing.TB, critical bool, names ...asn1.RawValue) pkix.Extension {
	t.Helper()
	return pkix.Extension{Id: oidSubjectAltName, Critical: critical, Value: must(asn1.Marshal(names))(t)}
}

func TestCertificates(t *testing.T) {
	acme, other := newCA(t), newCA(t)
	a := newAuthenticator(t, Source{Name: "other", Roots: []*x509.Certificate{other.certificate}}, Source{Name: "acme", Roots: []*x509.Certificate{acme.certificate}})
	unknown := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}
	registered := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 8, Bytes: []byte{0x2a, 3}}
	with := func(e ...pkix.Extension) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtraExtensions = e }
	}
	for name, c := range map[string]struct {
		by   *ca
		edit func(*x509.Certificate)
		rule pki.Rule
		want endorsement
	}{
		"with a critical description":         {acme, func(*x509.Certificate) {}, "", endorsement{"acme", product{"id:41434D45", "one", "id:1"}}},
		"with a description":                  {acme, with(describe(t, false, "id:1", "a model", "")), "", endorsement{"acme", product{"id:1", "a model", ""}}},
		"without a description":               {acme, with(), "", endorsement{source: "acme"}},
		"with a model that is not text":       {acme, with(describe(t, false, "id:1", "caf\u00e9", strings.Repeat("v", 65))), "", endorsement{"acme", product{"id:1", "", ""}}},
		"of an unknown manufacturer":          {newCA(t), func(*x509.Certificate) {}, "", endorsement{}},
		"expired, of an unknown manufacturer": {newCA(t), func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }, "", endorsement{}},
		"self-issued":                         {nil, func(*x509.Certificate) {}, "", endorsement{}},
		"expired":                             {acme, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }, pki.RuleEvidenceExpired, endorsement{}},
		"not yet valid":                       {acme, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }, pki.RuleEvidenceNotYet, endorsement{}},
		"with an unknown critical extension":  {acme, with(pkix.Extension{Id: unknown, Critical: true, Value: []byte{5, 0}}), pki.RuleEvidenceUntrusted, endorsement{}},
		"with an unknown extension":           {acme, with(pkix.Extension{Id: unknown, Value: []byte{5, 0}}), "", endorsement{source: "acme"}},
		"with another critical name":          {acme, with(altName(t, true, registered)), pki.RuleEvidenceUntrusted, endorsement{}},
		"with a name that does not parse":     {acme, with(altName(t, true, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: []byte{0x30, 5}})), pki.RuleEvidenceMalformed, endorsement{}},
		"with two models":                     {acme, with(altName(t, true, twice(t)...)), pki.RuleEvidenceMalformed, endorsement{}},
		"of a CA":                             {acme, func(c *x509.Certificate) { c.IsCA = true }, pki.RuleEvidenceUntrusted, endorsement{}},
		"for TLS": {acme, func(c *x509.Certificate) {
			c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}, pki.RuleEvidenceUntrusted, endorsement{}},
		"without usages": {acme, func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }, "", endorsement{"acme", product{"id:41434D45", "one", "id:1"}}},
		"valid forever":  {acme, func(c *x509.Certificate) { c.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }, "", endorsement{"acme", product{"id:41434D45", "one", "id:1"}}},
	} {
		k := newKeys(t)
		der := issue(t, c.by, k.ek.Public(), c.edit)
		ek := must(endorsementKey(tpm2.Marshal(k.ekArea)))(t)
		for _, stored := range [][]byte{der, append(der[:len(der):len(der)], make([]byte, 100)...)} {
			got, err := a.sources.verify(stored, ek, now)
			if c.rule != "" {
				refused(t, name, err, c.rule)
			} else if err != nil || got != c.want {
				t.Errorf("a certificate %s: got %+v, %v, want %+v", name, got, err, c.want)
			}
		}
	}
}

func twice(t testing.TB) []asn1.RawValue {
	t.Helper()
	name := must(asn1.Marshal(pkix.RDNSequence{{{Type: oidModel, Value: "one"}}}))(t)
	value := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}
	return []asn1.RawValue{value, value}
}

// TestNegativeSerialNumber checks that the refusal names what crypto/x509 refuses.
func TestNegativeSerialNumber(t *testing.T) {
	k := newKeys(t)
	der := issue(t, nil, k.ek.Public(), func(c *x509.Certificate) { c.SerialNumber = big.NewInt(0x55) })
	der = []byte(strings.Replace(string(der), "\x02\x01\x55", "\x02\x01\x85", 1))
	_, err := newAuthenticator(t).sources.verify(der, must(endorsementKey(tpm2.Marshal(k.ekArea)))(t), now)
	if refused(t, "a negative serial number", err, pki.RuleEvidenceMalformed); err == nil || !strings.Contains(err.Error(), "serial number that is negative") {
		t.Errorf("the refusal does not name the serial number: %v", err)
	}
}

func TestSourcesAreChecked(t *testing.T) {
	roots := []*x509.Certificate{newCA(t).certificate}
	for name, from := range map[string][]Source{
		"no name": {{Roots: roots}}, "a name with a space": {{Name: "a b", Roots: roots}}, "a long name": {{Name: strings.Repeat("a", 65), Roots: roots}},
		"no roots": {{Name: "acme"}}, "two of one name": {{Name: "acme", Roots: roots}, {Name: "acme", Roots: roots}}, "too many": make([]Source, maxSources+1),
	} {
		if _, err := New("fleet.example", from, nil); err == nil {
			t.Errorf("%s: the sources are accepted", name)
		}
	}
}

// TestOAEPKey uses a certificate whose key is marked with id-RSAES-OAEP.
func TestOAEPKey(t *testing.T) {
	key := modulus(2048)
	spki := must(asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}{pkix.AlgorithmIdentifier{Algorithm: oidOAEP}, asn1.BitString{Bytes: x509.MarshalPKCS1PublicKey(key), BitLength: 8 * len(x509.MarshalPKCS1PublicKey(key))}}))(t)
	if c := (&x509.Certificate{RawSubjectPublicKeyInfo: spki}); !certifies(c, key) || certifies(c, modulus(3072)) {
		t.Error("a key with id-RSAES-OAEP is not compared with the endorsement key")
	}
}
