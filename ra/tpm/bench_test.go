package tpm

import (
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

func BenchmarkChallenge(b *testing.B) {
	a := newAuthenticator(b)
	for name, area := range map[string]func(*keys){
		"P-256": func(*keys) {}, "RSA-2048": func(k *keys) { k.ekArea = rsaArea(modulus(2048), ekAttributes(), tpm2.TPMSRSAParms{Symmetric: aes128}) },
	} {
		k := newKeys(b)
		area(k)
		request := ra.ChallengeRequest{Kind: pki.EvidenceTPM, Request: requestID(b, 1), Public: k.public(b)}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := a.Challenge(b.Context(), request, now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkIdentify(b *testing.B) {
	a, f := newAuthenticator(b), newForgery(b)
	p := ra.Presented{Evidence: f.evidence(b, a), Request: f.request, Key: f.challengeKey, At: now}
	for b.Loop() {
		if _, err := a.Identify(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}
