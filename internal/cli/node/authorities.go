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
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/ra/revisions"
	"github.com/brevet-pki/brevet/server"
)

// authority is an installed CA that has not been removed.
type authority struct {
	ca.InstalledCA
	certificate *x509.Certificate
	issuer      *ca.IssuingCA // nil if its key is in no available HSM
}

func (a *authority) id() pki.IssuerID { return pki.IssuerOf(a.certificate) }

// issues reports whether the CA can issue certificates: it is active, and its key is available.
func (a *authority) issues() bool { return a.issuer != nil && a.State == ca.Active }

// authorities holds the installed CAs, in the order of their installation.
type authorities []*authority

// readAuthorities reads the installed CAs except the removed ones. It does not look for keys.
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

// authorities returns the installed CAs. It sets the issuer of each CA whose key is in an available HSM, and logs a
// warning for the others. If the newest CA has no key because an HSM is unavailable, authorities returns the HSM's
// error, so that no older CA issues instead.
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
	where := n.config.StorePath()
	if n.config.Store.Postgres != "" {
		where = "the database of store.postgres"
	}
	return nil, fmt.Errorf("no CA is installed in %s: run brevet ceremony install", where)
}

// findIssuer looks for the key of a CA in the HSMs.
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

// certificates returns the certificates of all CAs.
func (as authorities) certificates() []*x509.Certificate {
	var all []*x509.Certificate
	for _, a := range as {
		all = append(all, a.certificate)
	}
	return all
}

// newest returns the active issuing CA that was installed last, with or without an available key, or nil if there is
// none.
func (as authorities) newest() *authority {
	return as.last(func(a *authority) bool { return a.Key != "" && a.State == ca.Active })
}

// current returns the CA that issues new certificates: the last CA that can issue, or nil.
func (as authorities) current() *authority { return as.last((*authority).issues) }

func (as authorities) last(is func(*authority) bool) *authority {
	for _, a := range slices.Backward(as) {
		if is(a) {
			return a
		}
	}
	return nil
}

// issuers returns the CAs whose keys are available. The current CA is the last.
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

// retired returns the IDs of the CAs that no longer issue.
func (as authorities) retired() []pki.IssuerID {
	var ids []pki.IssuerID
	for _, a := range as {
		if a.State == ca.Retired {
			ids = append(ids, a.id())
		}
	}
	return ids
}

// cross returns the installed cross-certificates.
func (n *Node) cross(ctx context.Context) ([]*x509.Certificate, error) {
	installed, err := n.store.CA().CrossCertificates(ctx)
	if err != nil {
		return nil, err
	}
	var all []*x509.Certificate
	for _, c := range installed {
		cert, err := x509.ParseCertificate(c.Certificate)
		if err != nil {
			return nil, fmt.Errorf("read a cross-certificate: %w", err)
		}
		all = append(all, cert)
	}
	return all, nil
}

// checkIssues checks that relying parties will accept the certificates that the CA issues with this configuration. It does
// not check profiles.
func (c *Config) checkIssues(iss ca.IssuingCA) error {
	names, err := server.CheckNames(c.ServerNames)
	if err != nil {
		return err
	}
	id, err := pki.ServerID(c.TrustDomain, c.Store.Server)
	if err != nil {
		return err
	}
	return iss.CheckIssues(id, names, time.Now())
}

// checkCA checks that relying parties will accept the certificates that the CA issues with this configuration, and with
// the profiles of the policy. A server checks the profiles when it starts.
func (n *Node) checkCA(ctx context.Context, iss ca.IssuingCA) error {
	if err := n.config.checkIssues(iss); err != nil {
		return err
	}
	profiles, err := n.profiles(ctx)
	if err != nil {
		return fmt.Errorf("read the profiles of the policy: %w", err)
	}
	id, err := pki.ServerID(n.config.TrustDomain, n.config.Store.Server)
	if err != nil {
		return err
	}
	return iss.CheckProfiles(profiles, id, time.Now())
}

// profiles returns the profiles of the newest policy in the store, or of the first policy if the store has none.
func (n *Node) profiles(ctx context.Context) (*ca.Profiles, error) {
	newest, err := n.store.RA().Policy(ctx, 0)
	document := newest.Document
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule.Class() == pki.NotFound {
		if document, err = n.config.firstPolicy(); document == nil {
			document = policy.Default()
		}
	}
	if err != nil {
		return nil, err
	}
	compiled, err := revisions.Compiler{
		TrustDomain: n.config.TrustDomain, PublicURL: n.config.PublicURL, Files: revisions.NewFiles(n.config.evidencePath(), n.log),
		Certificates: n.store.RA(), Retention: n.config.Retention, Clock: time.Now, Log: n.log,
	}.Compile(document, newest.Revision)
	return compiled.Profiles, err
}
