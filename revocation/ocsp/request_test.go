package ocsp_test

import (
	"bytes"
	"crypto"
	encoding_asn1 "encoding/asn1"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/ocsp"
	"go.uber.org/goleak"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	xocsp "golang.org/x/crypto/ocsp"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A requestSpec describes a request to encode. The request may be invalid.
type requestSpec struct {
	ids        [][]byte                    // the CertIDs in DER
	single     []byte                      // singleRequestExtensions of each entry, or nil
	extensions []byte                      // requestExtensions, or nil
	before     func(b *cryptobyte.Builder) // writes fields before requestList
	after      []byte                      // bytes after tbsRequest
}

func tag(n uint8) asn1.Tag { return asn1.Tag(n).ContextSpecific().Constructed() }

func build(t testing.TB, f func(b *cryptobyte.Builder)) []byte {
	t.Helper()
	var b cryptobyte.Builder
	f(&b)
	der, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (d requestSpec) der(t testing.TB) []byte {
	return build(t, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				if d.before != nil {
					d.before(b)
				}
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					for _, id := range d.ids {
						b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
							b.AddBytes(id)
							if d.single != nil {
								b.AddASN1(tag(0), func(b *cryptobyte.Builder) { b.AddBytes(d.single) })
							}
						})
					}
				})
				if d.extensions != nil {
					b.AddASN1(tag(2), func(b *cryptobyte.Builder) { b.AddBytes(d.extensions) })
				}
			})
			b.AddBytes(d.after)
		})
	})
}

var (
	sha1OID   = encoding_asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	sha384OID = encoding_asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}
	nonceOID  = encoding_asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
	otherOID  = encoding_asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 9999}
)

func certID(t testing.TB, oid encoding_asn1.ObjectIdentifier, parameters []byte, size int, serial []byte) []byte {
	return build(t, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oid)
				b.AddBytes(parameters)
			})
			b.AddASN1OctetString(bytes.Repeat([]byte{1}, size))
			b.AddASN1OctetString(bytes.Repeat([]byte{2}, size))
			b.AddASN1(asn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(serial) })
		})
	})
}

func extension(t testing.TB, oid encoding_asn1.ObjectIdentifier, critical, value []byte) []byte {
	return build(t, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddBytes(critical)
			b.AddASN1OctetString(value)
		})
	})
}

func sequence(t testing.TB, parts ...[]byte) []byte {
	return build(t, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(bytes.Join(parts, nil)) })
	})
}

func nonce(t testing.TB, size int) []byte {
	value := build(t, func(b *cryptobyte.Builder) { b.AddASN1OctetString(bytes.Repeat([]byte{7}, size)) })
	return extension(t, nonceOID, nil, value)
}

func TestParseRequest(t *testing.T) {
	null := []byte{5, 0}
	true1, false1 := []byte{1, 1, 0xff}, []byte{1, 1, 0}
	good := certID(t, sha1OID, null, 20, []byte{5})
	for name, c := range map[string]struct {
		draft requestSpec
		ids   int // 0 if the request is malformed
		nonce int
	}{
		"plain":                    {requestSpec{ids: [][]byte{good}}, 1, 0},
		"no parameters":            {requestSpec{ids: [][]byte{certID(t, sha1OID, nil, 20, []byte{5})}}, 1, 0},
		"another hash":             {requestSpec{ids: [][]byte{certID(t, sha384OID, null, 48, []byte{5})}}, 1, 0},
		"negative serial":          {requestSpec{ids: [][]byte{certID(t, sha1OID, null, 20, []byte{0x80})}}, 1, 0},
		"21-byte serial":           {requestSpec{ids: [][]byte{certID(t, sha1OID, null, 20, bytes.Repeat([]byte{1}, 21))}}, 1, 0},
		"sixteen":                  {requestSpec{ids: repeatID(good, ocsp.MaxIDs)}, ocsp.MaxIDs, 0},
		"nonce of 1":               {requestSpec{ids: [][]byte{good}, extensions: sequence(t, nonce(t, 1))}, 1, 1},
		"nonce of 128":             {requestSpec{ids: [][]byte{good}, extensions: sequence(t, nonce(t, 128))}, 1, 128},
		"unknown extension":        {requestSpec{ids: [][]byte{good}, extensions: sequence(t, extension(t, otherOID, nil, null))}, 1, 0},
		"unknown single extension": {requestSpec{ids: [][]byte{good}, single: sequence(t, extension(t, otherOID, nil, null))}, 1, 0},
		"32 extensions":            {requestSpec{ids: [][]byte{good}, extensions: sequence(t, extensions(t, 32)...)}, 1, 0},
		"requestor name":           {requestSpec{ids: [][]byte{good}, before: func(b *cryptobyte.Builder) { b.AddASN1(tag(1), func(b *cryptobyte.Builder) { b.AddBytes(null) }) }}, 1, 0},
		"signature": {requestSpec{ids: [][]byte{good}, after: build(t, func(b *cryptobyte.Builder) {
			b.AddASN1(tag(0), func(b *cryptobyte.Builder) { b.AddBytes(sequence(t)) })
		})}, 1, 0},

		"no certificate":             {requestSpec{}, 0, 0},
		"seventeen":                  {requestSpec{ids: repeatID(good, ocsp.MaxIDs+1)}, 0, 0},
		"empty nonce":                {requestSpec{ids: [][]byte{good}, extensions: sequence(t, nonce(t, 0))}, 0, 0},
		"nonce of 129":               {requestSpec{ids: [][]byte{good}, extensions: sequence(t, nonce(t, 129))}, 0, 0},
		"nonce, not an OCTET STRING": {requestSpec{ids: [][]byte{good}, extensions: sequence(t, extension(t, nonceOID, nil, []byte("0123456789abcdef")))}, 0, 0},
		"33 extensions":              {requestSpec{ids: [][]byte{good}, extensions: sequence(t, extensions(t, 33)...)}, 0, 0},
		"33 single extensions":       {requestSpec{ids: [][]byte{good}, single: sequence(t, extensions(t, 33)...)}, 0, 0},
		"repeated extension":         {requestSpec{ids: [][]byte{good}, extensions: sequence(t, extension(t, otherOID, nil, null), extension(t, otherOID, nil, null))}, 0, 0},
		"two nonces":                 {requestSpec{ids: [][]byte{good}, extensions: sequence(t, nonce(t, 16), nonce(t, 16))}, 0, 0},
		"critical extension":         {requestSpec{ids: [][]byte{good}, extensions: sequence(t, extension(t, otherOID, true1, null))}, 0, 0},
		"critical single extension":  {requestSpec{ids: [][]byte{good}, single: sequence(t, extension(t, otherOID, true1, null))}, 0, 0},
		"criticality of FALSE":       {requestSpec{ids: [][]byte{good}, extensions: sequence(t, extension(t, otherOID, false1, null))}, 0, 0},
		"BER boolean":                {requestSpec{ids: [][]byte{good}, extensions: sequence(t, extension(t, otherOID, []byte{1, 1, 1}, null))}, 0, 0},
		"empty list of extensions":   {requestSpec{ids: [][]byte{good}, extensions: sequence(t)}, 0, 0},
		"explicit version 1":         {requestSpec{ids: [][]byte{good}, before: func(b *cryptobyte.Builder) { b.AddASN1(tag(0), func(b *cryptobyte.Builder) { b.AddASN1Int64(0) }) }}, 0, 0},
		"version 2":                  {requestSpec{ids: [][]byte{good}, before: func(b *cryptobyte.Builder) { b.AddASN1(tag(0), func(b *cryptobyte.Builder) { b.AddASN1Int64(1) }) }}, 0, 0},
		"trailing field":             {requestSpec{ids: [][]byte{good}, after: null}, 0, 0},
		"hash of another length":     {requestSpec{ids: [][]byte{certID(t, sha1OID, null, 19, []byte{5})}}, 0, 0},
		"BOOLEAN as parameters":      {requestSpec{ids: [][]byte{certID(t, sha1OID, true1, 20, []byte{5})}}, 0, 0},
		"NULL with content":          {requestSpec{ids: [][]byte{certID(t, sha1OID, []byte{5, 1, 0}, 20, []byte{5})}}, 0, 0},
		"serial with leading zero":   {requestSpec{ids: [][]byte{certID(t, sha1OID, null, 20, []byte{0, 5})}}, 0, 0},
		"serial without content":     {requestSpec{ids: [][]byte{certID(t, sha1OID, null, 20, nil)}}, 0, 0},
		"CertID of other fields":     {requestSpec{ids: [][]byte{sequence(t, null)}}, 0, 0},
		"larger than MaxRequestSize": {requestSpec{ids: [][]byte{good}, extensions: sequence(t, extension(t, otherOID, nil, make([]byte, ocsp.MaxRequestSize)))}, 0, 0},
		"CertID with another field":  {requestSpec{ids: [][]byte{sequence(t, good[2:], null)}}, 0, 0},
	} {
		der := c.draft.der(t)
		q, err := ocsp.ParseRequest(der)
		switch {
		case c.ids == 0 && err == nil:
			t.Errorf("%s: want an error, got %d CertIDs", name, len(q.IDs))
		case c.ids == 0:
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case len(q.IDs) != c.ids || len(q.Nonce) != c.nonce:
			t.Errorf("%s: %d CertIDs and a nonce of %d, want %d and %d", name, len(q.IDs), len(q.Nonce), c.ids, c.nonce)
		}
	}
}

// extensions returns n different unknown extensions.
func extensions(t testing.TB, n int) (all [][]byte) {
	for i := range n {
		all = append(all, extension(t, encoding_asn1.ObjectIdentifier{1, 2, 3, i}, nil, []byte{5, 0}))
	}
	return all
}

func repeatID(id []byte, n int) [][]byte {
	ids := make([][]byte, n)
	for i := range ids {
		ids[i] = id
	}
	return ids
}

func TestParseRequestRefusesNonDER(t *testing.T) {
	good := requestSpec{ids: [][]byte{certID(t, sha1OID, []byte{5, 0}, 20, []byte{5})}, extensions: sequence(t, nonce(t, 32))}.der(t)
	if _, err := ocsp.ParseRequest(good); err != nil {
		t.Fatal(err)
	}
	if good[1] >= 0x80 {
		t.Fatal("the sample request no longer fits a one-byte length")
	}
	for name, der := range map[string][]byte{
		"nothing":            nil,
		"trailing data":      append(bytes.Clone(good), 0),
		"indefinite length":  append(append([]byte{0x30, 0x80}, good[2:]...), 0, 0),
		"non-minimal length": append([]byte{0x30, 0x81, good[1]}, good[2:]...),
		"five-byte length":   append([]byte{0x30, 0x85, 0, 0, 0, 0, good[1]}, good[2:]...),
		"a set":              append([]byte{0x31}, good[1:]...),
		"length past end":    append([]byte{0x30, good[1] + 1}, good[2:]...),
	} {
		if _, err := ocsp.ParseRequest(der); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
	for n := range good {
		if _, err := ocsp.ParseRequest(good[:n]); err == nil {
			t.Errorf("the first %d of %d bytes parse as a request", n, len(good))
		}
	}
}

func TestParseRequestReadsOtherClients(t *testing.T) {
	ca := revtest.NewRoot(t, "Root", "p256").Intermediate(t, "Issuing CA", "p256")
	leaf, other := ca.Leaf(t, "device"), ca.Leaf(t, "another device")
	hashes, err := ocsp.HashIssuers(ca.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	caFile, leafFile, otherFile := revtest.PEMFile(t, ca.Certificate), revtest.PEMFile(t, leaf), revtest.PEMFile(t, other)
	signer := revtest.Key(t, "p256")
	signerFile := revtest.PEMFile(t, ca.Delegate(t, signer, nil))
	openssl := func(args ...string) []byte {
		out := filepath.Join(dir, "request.der")
		revtest.MustTool(t, "openssl", append([]string{"ocsp", "-issuer", caFile, "-reqout", out}, args...)...)
		return read(t, out)
	}
	x := func(h crypto.Hash) []byte {
		der, err := xocsp.CreateRequest(leaf, ca.Certificate, &xocsp.RequestOptions{Hash: h})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	gnutls := filepath.Join(dir, "gnutls.der")
	revtest.MustTool(t, "ocsptool", "--generate-request", "--load-issuer", caFile, "--load-cert", leafFile, "--outfile", gnutls)
	for name, c := range map[string]struct {
		der    []byte
		issuer ocsp.IssuerHash
		ids    int
		nonce  bool
	}{
		"openssl":            {openssl("-no_nonce", "-cert", leafFile), hashes[0], 1, false},
		"openssl with nonce": {openssl("-cert", leafFile), hashes[0], 1, true},
		"openssl SHA-256":    {openssl("-no_nonce", "-sha256", "-cert", leafFile), hashes[1], 1, false},
		"openssl two":        {openssl("-cert", leafFile, "-cert", otherFile), hashes[0], 2, true},
		"openssl signed":     {openssl("-cert", leafFile, "-signer", signerFile, "-signkey", revtest.KeyFile(t, signer)), hashes[0], 1, true},
		"x/crypto SHA-1":     {x(crypto.SHA1), hashes[0], 1, false},
		"x/crypto SHA-256":   {x(crypto.SHA256), hashes[1], 1, false},
		"GnuTLS":             {read(t, gnutls), hashes[0], 1, false},
	} {
		q, err := ocsp.ParseRequest(c.der)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(q.IDs) != c.ids || (q.Nonce != nil) != c.nonce {
			t.Errorf("%s: %d CertIDs, nonce %x; want %d and %v", name, len(q.IDs), q.Nonce, c.ids, c.nonce)
		}
		if want := ca.Ref(t, leaf).Serial; q.IDs[0].Issuer != c.issuer || q.IDs[0].Serial != want {
			t.Errorf("%s: the CertID is for serial %v, want %v of this CA", name, q.IDs[0].Serial, want)
		}
	}
}

func TestParseRequestRoundTrips(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var d requestSpec
		serials := rapid.SliceOfN(rapid.Uint64Range(1, 1<<63-1), 1, ocsp.MaxIDs).Draw(r, "serials")
		for _, n := range serials {
			content := build(t, func(b *cryptobyte.Builder) { b.AddASN1Uint64(n) })
			d.ids = append(d.ids, certID(t, sha1OID, []byte{5, 0}, 20, content[2:]))
		}
		size := rapid.IntRange(0, ocsp.MaxNonce).Draw(r, "nonce")
		if size > 0 {
			d.extensions = sequence(t, nonce(t, size))
		}
		q, err := ocsp.ParseRequest(d.der(t))
		if err != nil {
			r.Fatal(err)
		}
		if len(q.IDs) != len(serials) || len(q.Nonce) != size {
			r.Fatalf("%d CertIDs and a nonce of %d", len(q.IDs), len(q.Nonce))
		}
		for i, id := range q.IDs {
			if id.Serial.Int().Uint64() != serials[i] || !bytes.Equal(id.Raw, d.ids[i]) {
				r.Fatalf("CertID %d is %v, want %x", i, id.Serial, serials[i])
			}
		}
	})
}

func FuzzParseRequest(f *testing.F) {
	id := certID(f, sha1OID, []byte{5, 0}, 20, []byte{5})
	f.Add(requestSpec{ids: [][]byte{id}}.der(f))
	f.Add(requestSpec{ids: repeatID(id, 3), single: sequence(f, extension(f, otherOID, nil, []byte{5, 0})), extensions: sequence(f, nonce(f, 32))}.der(f))
	f.Add([]byte(strings.Repeat("0\x80", 40)))
	f.Fuzz(func(t *testing.T, der []byte) {
		q, err := ocsp.ParseRequest(der)
		if err != nil {
			return
		}
		compareWithGo(t, der, q)
		comparePlainCertID(t, der, q)
		if len(q.IDs) < 1 || len(q.IDs) > ocsp.MaxIDs || q.Nonce != nil && (len(q.Nonce) < 1 || len(q.Nonce) > ocsp.MaxNonce) {
			t.Fatalf("%d CertIDs and a nonce of %d bytes are out of bounds", len(q.IDs), len(q.Nonce))
		}
		for _, id := range q.IDs {
			if !bytes.Contains(der, id.Raw) || id.Serial != (pki.Serial{}) && id.Serial.Int().Sign() <= 0 {
				t.Fatalf("CertID %x of %x", id.Raw, der)
			}
		}
	})
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
