//go:build judges

package acme_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/mholt/acmez/v3"
	zacme "github.com/mholt/acmez/v3/acme"
	xacme "golang.org/x/crypto/acme"
)

// files responds to http-01 with files in a directory.
type files string

func (f files) write(path, response string) error {
	return os.WriteFile(filepath.Join(string(f), filepath.Base(path)), []byte(response), 0o600)
}

// Present implements acmez.Solver.
func (f files) Present(_ context.Context, c zacme.Challenge) error {
	return f.write(c.HTTP01ResourcePath(), c.KeyAuthorization)
}

// CleanUp implements acmez.Solver.
func (files) CleanUp(context.Context, zacme.Challenge) error { return nil }

// acmezLibrary uses the library in Caddy, which has no schedule.
func acmezLibrary(j *judge) commands {
	ctx := j.t.Context()
	low := &zacme.Client{Directory: j.directoryURL, HTTPClient: j.http}
	c := acmez.Client{Client: low, ChallengeSolvers: map[string]acmez.Solver{zacme.ChallengeTypeHTTP01: files(j.webroot())}}
	account := zacme.Account{PrivateKey: newKey(j.t)}
	register := sync.OnceValue(func() (err error) {
		if err := account.SetExternalAccountBinding(ctx, low, zacme.EAB{KeyID: j.kid, MACKey: j.hmac}); err != nil {
			return err
		}
		account, err = c.NewAccount(ctx, account)
		return err
	})
	var leaf *x509.Certificate
	get := func() error {
		if err := register(); err != nil {
			return err
		}
		chains, err := c.ObtainCertificateForSANs(ctx, account, newKey(j.t), []string{host})
		if err != nil {
			return err
		}
		leaf, err = x509.ParseCertificate(decodePEM(j.t, chains[0].ChainPEM))
		return err
	}
	revoke := func() error { return c.RevokeCertificate(ctx, account, leaf, nil, zacme.ReasonSuperseded) }
	return commands{get: get, renew: get, revoke: revoke}
}

// goLibrary uses the library in autocert, which has no schedule.
func goLibrary(j *judge) commands {
	ctx, challenges := j.t.Context(), files(j.webroot())
	c := &xacme.Client{Key: newKey(j.t), DirectoryURL: j.directoryURL, HTTPClient: j.http}
	register := sync.OnceValue(func() error {
		binding := &xacme.ExternalAccountBinding{KID: j.kid, Key: j.secret}
		_, err := c.Register(ctx, &xacme.Account{ExternalAccountBinding: binding}, xacme.AcceptTOS)
		return err
	})
	authorize := func(url string) error {
		z, err := c.GetAuthorization(ctx, url)
		if err != nil {
			return err
		}
		for _, ch := range z.Challenges {
			if ch.Type != "http-01" {
				continue
			}
			response, err := c.HTTP01ChallengeResponse(ch.Token)
			if err != nil {
				return err
			}
			if err := challenges.write(ch.Token, response); err != nil {
				return err
			}
			if _, err := c.Accept(ctx, ch); err != nil {
				return err
			}
			_, err = c.WaitAuthorization(ctx, url)
			return err
		}
		return fmt.Errorf("there is no challenge http-01 at %s", url)
	}
	var leaf []byte
	get := func() error {
		if err := register(); err != nil {
			return err
		}
		o, err := c.AuthorizeOrder(ctx, xacme.DomainIDs(host))
		if err != nil {
			return err
		}
		for _, url := range o.AuthzURLs {
			if err := authorize(url); err != nil {
				return err
			}
		}
		if o, err = c.WaitOrder(ctx, o.URI); err != nil {
			return err
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, csrFor(host), newKey(j.t))
		if err != nil {
			return err
		}
		chain, _, err := c.CreateOrderCert(ctx, o.FinalizeURL, csr, true)
		if err == nil {
			leaf = chain[0]
		}
		return err
	}
	revoke := func() error { return c.RevokeCert(ctx, nil, leaf, xacme.CRLReasonSuperseded) }
	return commands{get: get, renew: get, revoke: revoke}
}
