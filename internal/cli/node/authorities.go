package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server"
)

// authority is an installed CA that is not removed.
type authority struct {
	ca.InstalledCA
	certificate *x509.Certificate
	issuer      *ca.IssuingCA // nil without a key in an available HSM
}

// id returns the CA's identifier.
func (a *authority) id() pki.IssuerID { return pki.IssuerOf(a.certificate) }

// issues reports whether certificates may be issued from the CA.
func (a *authority) issues() bool { return a.issuer != nil && a.State == ca.Active }

// authorities are the installed CAs, in the order of their installation.
type authorities []*authority

// readAuthorities reads the installed CAs, without the removed ones, and looks for no keys.
func (n *Node) readAuthorities(ctx context.Context) (authorities, error) {
	installed, err := n.store.CA().Installed(ctx)
	if err != nil {
		return nil, err
	}
	var all authorities
	for _, i := range installed {
		if i.State == ca.Removed {
			continue
		}
		cert, err := x509.ParseCertificate(i.Certificate)
		if err != nil {
			return nil, fmt.Errorf("read an installed CA certificate: %w", err)
		}
		all = append(all, &authority{InstalledCA: i, certificate: cert})
	}
	return all, nil
}

// authorities returns the installed CAs, each with an issuer if its key is in an HSM. A CA without its key is warned of. If
// it is the newest one, and an HSM is not available, the error is that of the HSM: an older CA must not issue in its place.
func (n *Node) authorities(ctx context.Context) (authorities, error) {
	all, err := n.readAuthorities(ctx)
	if err != nil {
		return nil, err
	}
	var missing error
	for _, a := range all {
		if a.Key == "" {
			continue
		}
		err := n.findIssuer(ctx, a, all.certificates())
		if errors.Is(err, hsm.ErrNotFound) {
			n.log.Warn("the key of an installed CA is not in the HSM: it issues nothing, and its CRL is not renewed",
				"issuer", a.certificate.Subject.String(), "key", a.Key)
			missing = err
			continue
		}
		if err != nil {
			return nil, err
		}
	}
	if newest := all.newest(); newest != nil && newest.issuer == nil {
		if absent, _ := absence(n.hsms); absent != nil {
			return nil, fmt.Errorf("the key %q of %s, the newest CA, is in none of the HSMs that are available: %w", newest.Key, newest.certificate.Subject, absent)
		}
	}
	if all.current() != nil {
		return all, nil
	}
	if missing != nil {
		return nil, missing
	}
	return nil, fmt.Errorf("no CA is installed in %s: run brevet ceremony install", n.config.StorePath())
}

// findIssuer finds the key of a CA.
func (n *Node) findIssuer(ctx context.Context, a *authority, all []*x509.Certificate) error {
	holder, key, err := findKey(ctx, n.hsms, a.Key, a.certificate.PublicKey)
	if err != nil {
		return fmt.Errorf("the key %q of %s: %w", a.Key, a.certificate.Subject, err)
	}
	iss, err := ca.NewIssuingCA(a.certificate, key, all)
	if err != nil {
		return err
	}
	a.issuer = &iss
	holder.keys, holder.issuers = append(holder.keys, key), append(holder.issuers, iss.ID)
	return nil
}

// certificates returns those of all CAs.
func (as authorities) certificates() []*x509.Certificate {
	var all []*x509.Certificate
	for _, a := range as {
		all = append(all, a.certificate)
	}
	return all
}

// newest returns the active issuing CA that was installed last, wherever its key is; nil if there is none.
func (as authorities) newest() *authority {
	return as.last(func(a *authority) bool { return a.Key != "" && a.State == ca.Active })
}

// current returns the CA that issues; nil if none can.
func (as authorities) current() *authority { return as.last((*authority).issues) }

func (as authorities) last(is func(*authority) bool) *authority {
	for _, a := range slices.Backward(as) {
		if is(a) {
			return a
		}
	}
	return nil
}

// issuers returns the CAs with a key, the current one last.
func (as authorities) issuers() []ca.IssuingCA {
	var retired, active []ca.IssuingCA
	for _, a := range as {
		switch {
		case a.issuer == nil:
		case a.State == ca.Retired:
			retired = append(retired, *a.issuer)
		default:
			active = append(active, *a.issuer)
		}
	}
	return append(retired, active...)
}

// retired returns the CAs from which nothing is issued any more.
func (as authorities) retired() []pki.IssuerID {
	var ids []pki.IssuerID
	for _, a := range as {
		if a.State == ca.Retired {
			ids = append(ids, a.id())
		}
	}
	return ids
}

// checkIssues verifies that relying parties will accept what a CA issues under this configuration.
func (c *Config) checkIssues(iss ca.IssuingCA) error {
	profiles, err := c.profiles()
	if err != nil {
		return err
	}
	names, err := server.CheckNames(c.ServerNames)
	if err != nil {
		return err
	}
	id, err := pki.ServerID(c.TrustDomain)
	if err != nil {
		return err
	}
	return iss.CheckIssues(profiles, id, names, time.Now())
}
