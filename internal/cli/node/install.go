package node

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// Installation is the result of a ceremony, which Install records on the machine of the server.
type Installation struct {
	Certificate *x509.Certificate
	Key         string // label of the CA's key in one of the configured HSMs
	others      []*x509.Certificate
	crls        []*x509.RevocationList
}

// ReadInstallation reads the files that a ceremony wrote. Each contains one object in PEM or DER.
func ReadInstallation(certFile, key string, others, crls []string) (Installation, error) {
	inst := Installation{Key: key}
	var err error
	if inst.Certificate, err = file.ReadCertificate(certFile); err != nil {
		return inst, err
	}
	for _, path := range others {
		cert, err := file.ReadCertificate(path)
		if err != nil {
			return inst, err
		}
		inst.others = append(inst.others, cert)
	}
	for _, path := range crls {
		list, err := file.ReadCRL(path)
		if err != nil {
			return inst, err
		}
		inst.crls = append(inst.crls, list)
	}
	return inst, nil
}

// Install checks that the files belong together, and that relying parties will accept the certificates that the CA
// issues. Then it records them in the store. It records the CA's certificate last, because the server uses the other
// files only with that certificate. Install can be repeated.
func (n *Node) Install(ctx context.Context, inst Installation, by pki.Actor) error {
	if err := n.config.checkOwnTrustDomain(); err != nil {
		return err
	}
	_, key, err := findKey(ctx, n.hsms, inst.Key, inst.Certificate.PublicKey)
	if err != nil {
		absent, _ := absence(n.hsms)
		return errors.Join(err, absent)
	}
	iss, err := ca.NewIssuingCA(inst.Certificate, key, inst.others)
	if err != nil {
		return err
	}
	for _, cert := range inst.others {
		if !cert.Equal(iss.Root) && !slices.ContainsFunc(iss.Chain, cert.Equal) {
			return fmt.Errorf("--root %s did not sign %s, nor what signed it: give the certificates of its chain alone", cert.Subject, inst.Certificate.Subject)
		}
	}
	if err := n.checkCA(ctx, iss); err != nil {
		return err
	}
	if err := n.newGeneration(ctx, inst.Certificate); err != nil {
		return err
	}
	if err := n.checkRootOf(ctx, iss); err != nil {
		return err
	}
	now := time.Now()
	for _, list := range inst.crls {
		if _, err := signerOf(list, inst.others); err != nil {
			return err
		}
		if err := crl.CheckImport(list, now); err != nil {
			return err
		}
	}
	for _, cert := range inst.others {
		if err := n.store.CA().Install(ctx, ca.InstalledCA{Certificate: cert.Raw, At: now}, by); err != nil {
			return err
		}
	}
	for _, list := range inst.crls {
		if err := n.importCRL(ctx, list, inst.others, by); err != nil {
			return err
		}
	}
	return n.store.CA().Install(ctx, ca.InstalledCA{Certificate: inst.Certificate.Raw, Key: inst.Key, At: now}, by)
}

// newGeneration returns an error if an installed CA has the same subject but another key, or the same key but another
// subject. Relying parties find an issuer by its subject (RFC 5280 §4.1.2.4). It accepts a certificate with the subject
// and the key of an installed CA, because that is a renewed certificate.
func (n *Node) newGeneration(ctx context.Context, cert *x509.Certificate) error {
	installed, err := n.store.CA().Installed(ctx)
	if err != nil {
		return err
	}
	for _, i := range installed {
		other, err := x509.ParseCertificate(i.Certificate)
		if err != nil {
			return fmt.Errorf("read an installed CA certificate: %w", err)
		}
		sameName, sameKey := bytes.Equal(other.RawSubject, cert.RawSubject), bytes.Equal(other.RawSubjectPublicKeyInfo, cert.RawSubjectPublicKeyInfo)
		if sameName && !sameKey {
			return fmt.Errorf("a CA with another key is installed as %s already: every generation has its own subject, so ask and sign again with another", cert.Subject)
		}
		if sameKey && !sameName {
			return fmt.Errorf("the key of %s is installed for %s already: every generation has its own key, so make a new one", cert.Subject, other.Subject)
		}
	}
	return nil
}

// checkRootOf returns an error if the root of a CA is retired, or if a cross-certificate of the root does not verify
// with the CA. Relying parties would refuse the certificates that the CA issues.
func (n *Node) checkRootOf(ctx context.Context, iss ca.IssuingCA) error {
	installed, err := n.readAuthorities(ctx)
	if err != nil {
		return err
	}
	var roots []*x509.Certificate
	for _, a := range installed {
		if a.certificate.Equal(iss.Root) && a.State == ca.Retired {
			return fmt.Errorf("the root %s is retired, and not in the trust bundle: have another root sign %s",
				iss.Root.Subject, iss.Certificate.Subject)
		}
		if ca.IsRoot(a.certificate) && a.State == ca.Active {
			roots = append(roots, a.certificate)
		}
	}
	all, err := n.cross(ctx)
	if err != nil {
		return err
	}
	for _, cross := range all {
		signer, subject := ca.CrossRoots(cross, roots)
		now := time.Now()
		if signer == nil || subject == nil || !subject.Equal(iss.Root) || now.After(cross.NotAfter) || now.After(signer.NotAfter) {
			continue
		}
		if err := checkCrossChain(cross, signer, iss.Chain, now); err != nil {
			return err
		}
	}
	return nil
}

func signerOf(list *x509.RevocationList, among []*x509.Certificate) (*x509.Certificate, error) {
	for _, cert := range among {
		if list.CheckSignatureFrom(cert) == nil {
			return cert, nil
		}
	}
	return nil, fmt.Errorf("none of the given CA certificates signed the CRL of %s: give its CA's certificate with --root", list.Issuer)
}

func (n *Node) importCRL(ctx context.Context, list *x509.RevocationList, signers []*x509.Certificate, by pki.Actor) error {
	signer, err := signerOf(list, signers)
	if err != nil {
		return err
	}
	err = n.store.Revocation().PutCRLs(ctx, []crl.CRL{crl.Imported(pki.IssuerOf(signer), list)}, by, time.Now())
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleCRL {
		return nil // Install was repeated: the store already contains this CRL or a newer one
	}
	return err
}
