package hsm

import (
	"crypto"
	"crypto/sha256"
	"testing"
	"os"
	"github.com/miekg/pkcs11"
)

func BenchmarkSign(b *testing.B) {
	conf, err := WriteSoftHSM(b.TempDir())
	if err != nil { b.Fatal(err) }
	os.Setenv(SoftHSMConfEnv, conf)
	module, _ := FindSoftHSM()
	pin, _ := NewPIN([]byte("12345678"))
	if _, err := InitToken(b.Context(), module, "x", pin, pin); err != nil { b.Fatal(err) }
	tok, err := Open(b.Context(), Config{Module: module, TokenLabel: "x"}, pin)
	if err != nil { b.Fatal(err) }
	defer tok.Close()
	k, err := tok.Generate(b.Context(), "k", P256)
	if err != nil { b.Fatal(err) }
	d := sha256.Sum256([]byte("x"))
	b.Run("key", func(b *testing.B) { for b.Loop() { if _, err := k.Sign(nil, d[:], crypto.SHA256); err != nil { b.Fatal(err) } } })
	b.Run("raw", func(b *testing.B) {
		a, err := tok.attach(b.Context())
		if err != nil { b.Fatal(err) }
		defer tok.module.leave()
		s, _ := a.take(tok, false)
		h, _ := s.again(k)
		for b.Loop() {
			if _, err := s.sign(pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil), h, d[:]); err != nil { b.Fatal(err) }
		}
	})
	b.Run("keyparallel", func(b *testing.B) { b.SetParallelism(16); b.RunParallel(func(pb *testing.PB) { for pb.Next() { if _, err := k.Sign(nil, d[:], crypto.SHA256); err != nil { b.Fatal(err) } } }) })
}
