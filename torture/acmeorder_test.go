package torture

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
)

// order makes an order, and finalizes it unless it keeps the order for later.
func (c *acmeClient) order(ctx context.Context) {
	o := c.ready
	c.ready = nil
	if o == nil {
		if o = c.prepare(ctx); o == nil {
			return
		}
	}
	if c.random.IntN(10) == 0 {
		c.ready = o
		return
	}
	c.finalize(ctx, o)
}

// prepare makes an order and fulfills its challenges. It returns nil if the order cannot become ready soon.
func (c *acmeClient) prepare(ctx context.Context) *acmeOrder {
	names := c.names[:1+c.random.IntN(len(c.names))]
	var o *acme.Order
	err := c.retry(ctx, func(ctx context.Context) (err error) {
		o, err = c.account.AuthorizeOrder(ctx, acme.IPIDs(names...))
		return err
	})
	if err != nil {
		c.unexpected(ctx, "new order", err)
		return nil
	}
	made := &acmeOrder{Order: o, account: c.account}
	for _, authorization := range o.AuthzURLs {
		if c.random.IntN(8) == 0 {
			if _, err := c.certify(ctx, made, newKey()); !refusedBy(err, "orderNotReady") {
				c.unexpected(ctx, "an order without a valid authorization was finalized", err)
			}
		}
		if !c.fulfill(ctx, authorization) {
			return nil
		}
	}
	return made
}

// fulfillTimeout is how long a client waits for a validation. The server forgets a validation when it is killed, and
// begins another one only after some minutes.
const fulfillTimeout = 3 * time.Second

func (c *acmeClient) fulfill(ctx context.Context, url string) bool {
	accepted := false
	for end := time.Now().Add(fulfillTimeout); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var z *acme.Authorization
		err := c.retry(ctx, func(ctx context.Context) (err error) {
			z, err = c.account.GetAuthorization(ctx, url)
			return err
		})
		if err != nil {
			c.unexpected(ctx, "read an authorization", err)
			return false
		}
		switch {
		case z.Status == acme.StatusValid:
			return true
		case z.Status != acme.StatusPending:
			c.w.observed.faultf("the authorization %s is %s", url, z.Status)
			return false
		case accepted:
			continue
		}
		for _, challenge := range z.Challenges {
			text, err := c.account.HTTP01ChallengeResponse(challenge.Token)
			if err != nil {
				c.unexpected(ctx, "respond to a challenge", err)
				return false
			}
			c.responses.Store(c.account.HTTP01ChallengePath(challenge.Token), text)
			err = c.retry(ctx, func(ctx context.Context) error {
				_, err := c.account.Accept(ctx, challenge)
				return err
			})
			if err != nil && !refusedBy(err, "malformed") { // the authorization may be valid by now
				c.unexpected(ctx, "accept a challenge", err)
				return false
			}
		}
		accepted = true
	}
	return false
}

// certify finalizes an order with a key, until it is answered, and returns the certificate.
func (c *acmeClient) certify(ctx context.Context, o *acmeOrder, key *ecdsa.PrivateKey) (*credential, error) {
	template := &x509.CertificateRequest{}
	for _, i := range o.Identifiers {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(i.Value))
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, err
	}
	var chain [][]byte
	err = c.retry(ctx, func(ctx context.Context) (err error) {
		chain, _, err = o.account.CreateCertFromOrder(ctx, o.Order, csr, true)
		return err
	})
	if err != nil {
		return nil, err
	}
	certificate, err := parseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	c.recordCertificate(o, certificate)
	if !key.PublicKey.Equal(certificate.PublicKey) {
		return nil, fmt.Errorf("certificate %s does not have the key of the CSR", abbreviate(serialOf(certificate)))
	}
	return &credential{certificate, key}, nil
}

// recordCertificate records the certificate of an order. A second one is a fault.
func (a *acmeWorld) recordCertificate(o *acmeOrder, certificate *x509.Certificate) {
	a.w.observed.recordIssued(&request{id: []byte(o.URI)}, certificate)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.orders[lastID(o.URI)] = serialOf(certificate)
}

// lastID returns the ID at the end of a URL, in hexadecimal as in the store.
func lastID(url string) string {
	id, _ := base64.RawURLEncoding.DecodeString(url[strings.LastIndexByte(url, '/')+1:])
	return fmt.Sprintf("%X", id)
}

// finalize finalizes an order: once, after a lost answer, or on two connections at once with one key or with two.
func (c *acmeClient) finalize(ctx context.Context, o *acmeOrder) {
	keys := []*ecdsa.PrivateKey{newKey()}
	switch c.random.IntN(4) {
	case 0:
		short, cancel := context.WithTimeout(ctx, time.Duration(c.random.IntN(30))*time.Millisecond)
		_, _ = c.certify(short, o, keys[0]) // its answer may be lost
		cancel()
	case 1:
		keys = append(keys, keys[0])
	case 2:
		keys = append(keys, newKey())
	}
	got, errs := make([]*credential, len(keys)), make([]error, len(keys))
	var busy sync.WaitGroup
	for i, key := range keys {
		busy.Go(func() { got[i], errs[i] = c.certify(ctx, o, key) })
	}
	busy.Wait()
	for i, key := range keys {
		switch {
		case errs[i] == nil:
			o.got = got[i]
		case len(keys) < 2 || key == keys[1-i] || !refused(errs[i]):
			c.unexpected(ctx, "finalize "+o.URI, errs[i])
		}
	}
	if o.got == nil {
		c.unexpected(ctx, "nobody got a certificate for "+o.URI, errors.Join(errs...))
		return
	}
	c.done = append(c.done[max(0, len(c.done)-maxKept):], o)
}

// repeat reads an order that is valid, and finalizes it again, with its key and with another one.
func (c *acmeClient) repeat(ctx context.Context, o *acmeOrder) {
	var now *acme.Order
	err := c.retry(ctx, func(ctx context.Context) (err error) {
		now, err = o.account.GetOrder(ctx, o.URI)
		return err
	})
	if err != nil || now.Status != acme.StatusValid {
		c.unexpected(ctx, "an order that was valid is not: "+o.URI, err)
		return
	}
	if _, err := c.certify(ctx, o, o.got.key); err != nil {
		c.unexpected(ctx, "finalize again "+o.URI, err)
	}
	if _, err := c.certify(ctx, o, newKey()); !refusedBy(err, "orderNotReady") {
		c.unexpected(ctx, "a valid order was finalized with another key: "+o.URI, err)
	}
}

// revoke revokes the certificate of an order, with the account's key or that of the certificate.
func (c *acmeClient) revoke(ctx context.Context, o *acmeOrder) {
	reason := acme.CRLReasonSuperseded
	if c.random.IntN(4) == 0 {
		reason = acme.CRLReasonKeyCompromise
	}
	err := c.retry(ctx, func(ctx context.Context) error {
		if c.random.IntN(2) == 0 {
			return o.account.RevokeCert(ctx, nil, o.got.certificate.Raw, reason)
		}
		return o.account.RevokeCert(ctx, o.got.key, o.got.certificate.Raw, reason)
	})
	if err != nil {
		c.unexpected(ctx, "revoke", err)
		return
	}
	c.w.observed.recordRevoked(o.got.serial())
	c.w.checkRevoked(ctx, o.got.certificate, "revocation by ACME")
}
