package hsm

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

// TestParsePointRawAndWrapped parses points in both forms that HSMs return: directly, and in an OCTET STRING. It uses
// many keys, so that for some of them the raw point also looks like the beginning of an OCTET STRING.
func TestParsePointRawAndWrapped(t *testing.T) {
	der := func(v any, params string) []byte {
		b, err := asn1.MarshalWithParams(v, params)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	curves := map[Algorithm]elliptic.Curve{P256: elliptic.P256(), P384: elliptic.P384()}
	params := map[Algorithm][]byte{P256: der(oidP256, ""), P384: der(oidP384, "")}
	for alg, curve := range curves {
		for range 600 {
			key, err := ecdsa.GenerateKey(curve, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := key.PublicKey.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			for _, point := range [][]byte{raw, der(raw, "")} {
				pub, got, err := parsePoint(params[alg], point)
				if err != nil || got != alg || !pub.Equal(&key.PublicKey) {
					t.Fatalf("%v %x: %v, %v", alg, point, got, err)
				}
			}
		}
	}
	edPub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, params := range [][]byte{der(oidEd25519, ""), der(edwards25519, "printable")} {
		for _, point := range [][]byte{edPub, der([]byte(edPub), "")} {
			pub, alg, err := parsePoint(params, point)
			if err != nil || alg != Ed25519 || !pub.Equal(edPub) {
				t.Errorf("%x %x: %v, %v", params, point, alg, err)
			}
		}
	}
}

// TestParsersAcceptOnlyPointsOnCurve passes random bytes to the parsers. They must not panic, and must not return a key
// that is not on its curve.
func TestParsersAcceptOnlyPointsOnCurve(t *testing.T) {
	p256, err := asn1.Marshal(oidP256)
	if err != nil {
		t.Fatal(err)
	}
	for _, point := range [][]byte{nil, {4}, make([]byte, 65), append([]byte{4}, make([]byte, 64)...), append([]byte{2}, make([]byte, 32)...)} {
		if _, _, err := parsePoint(p256, point); !errors.Is(err, ErrKey) {
			t.Errorf("%x: %v", point, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		random := rapid.SliceOfN(rapid.Byte(), 0, 600)
		_, _, err := parsePoint(random.Draw(t, "params"), random.Draw(t, "point"))
		if !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrKey) {
			t.Errorf("parsePoint with random parameters: %v", err)
		}
		pub, _, err := parsePoint(p256, random.Draw(t, "point"))
		if err == nil && !isOnCurve(pub) {
			t.Error("a point off the curve was accepted")
		}
		_, _, err = parseRSA(random.Draw(t, "n"), random.Draw(t, "e"))
		if err != nil && !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrKey) {
			t.Errorf("parseRSA with random bytes: %v", err)
		}
	})
}

// isOnCurve checks the point with the standard library's ECDH, which refuses other points.
func isOnCurve(pub publicKey) bool {
	_, err := pub.(*ecdsa.PublicKey).ECDH()
	return err == nil
}

// TestECDSADERMatchesEncodingASN1 compares ecdsaDER with encoding/asn1.
func TestECDSADERMatchesEncodingASN1(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{32, 48}).Draw(t, "size")
		raw := rapid.SliceOfN(rapid.Byte(), 2*size, 2*size).Draw(t, "raw")
		r, s := new(big.Int).SetBytes(raw[:size]), new(big.Int).SetBytes(raw[size:])
		got, err := ecdsaDER(raw)
		if r.Sign() == 0 || s.Sign() == 0 {
			if !errors.Is(err, ErrKey) {
				t.Errorf("ecdsaDER with zero: %v", err)
			}
			return
		}
		want, werr := asn1.Marshal(struct{ R, S *big.Int }{r, s})
		if err != nil || werr != nil || string(got) != string(want) {
			t.Errorf("%x: %x, %v; want %x, %v", raw, got, err, want, werr)
		}
	})
}

func TestAlgorithmNames(t *testing.T) {
	for alg := P256; alg <= Ed25519; alg++ {
		if got, err := ParseAlgorithm(alg.String()); err != nil || got != alg {
			t.Errorf("%v: %v, %v", alg, got, err)
		}
	}
	for name, want := range map[string]Algorithm{"p256": P256, "rsa-3072": RSA3072, "RSA4096": RSA4096, "ed25519": Ed25519} {
		if got, err := ParseAlgorithm(name); err != nil || got != want {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "unknown", "P-521", "RSA", "RSA-2048"} {
		if got, err := ParseAlgorithm(name); err == nil {
			t.Errorf("%q: %v", name, got)
		}
	}
	if s := Algorithm(0).String() + Algorithm(200).String(); s != "unknownunknown" {
		t.Errorf("the names of no algorithm: %s", s)
	}
}
