package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// RootInstallation is a root that has no issuing CA yet, with its CRL and cross-certificates.
type RootInstallation struct {
	Root  *x509.Certificate
	Cross []*x509.Certificate
	crls  []*x509.RevocationList
}

// ReadRootInstallation reads the files that a ceremony wrote. Each contains one object in PEM or DER.
func ReadRootInstallation(root string, crls, cross []string) (RootInstallation, error) {
	files, err := ReadInstallation(root, "", cross, crls)
	return RootInstallation{Root: files.Certificate, Cross: files.others, crls: files.crls}, err
}

// InstallRoot checks that the files belong together and to the installed roots. Then it records them in the store. It
// can be repeated.
func (n *Node) InstallRoot(ctx context.Context, inst RootInstallation, by pki.Actor) error {
	installed, err := n.readAuthorities(ctx)
	if err != nil {
		return err
	}
	if len(installed) == 0 {
		return errors.New("no issuing CA is installed, so that there is no root to change: run brevet ceremony install")
	}
	now := time.Now()
	if err := checkNewRoot(inst.Root, now); err != nil {
		return err
	}
	if err := n.newGeneration(ctx, inst.Root); err != nil {
		return err
	}
	roots := []*x509.Certificate{inst.Root}
	for _, a := range installed {
		if ca.IsRoot(a.certificate) {
			roots = append(roots, a.certificate)
		}
	}
	for _, cross := range inst.Cross {
		if err := checkCross(cross, roots, installed, now); err != nil {
			return err
		}
	}
	for _, list := range inst.crls {
		if _, err := signerOf(list, roots[:1]); err != nil {
			return err
		}
		if err := crl.CheckImport(list, now); err != nil {
			return err
		}
	}
	return n.recordRoot(ctx, inst, now, by)
}

// recordRoot records the files of a root in the store.
func (n *Node) recordRoot(ctx context.Context, inst RootInstallation, now time.Time, by pki.Actor) error {
	if err := n.store.CA().Install(ctx, ca.InstalledCA{Certificate: inst.Root.Raw, At: now}, by); err != nil {
		return err
	}
	for _, list := range inst.crls {
		if err := n.importCRL(ctx, list, []*x509.Certificate{inst.Root}, by); err != nil {
			return err
		}
	}
	for _, cross := range inst.Cross {
		if err := n.store.CA().InstallCross(ctx, ca.CrossCertificate{Certificate: cross.Raw, At: now}, by); err != nil {
			return err
		}
	}
	return nil
}

// checkNewRoot returns an error for a certificate that is not a root for issuing CAs.
func checkNewRoot(root *x509.Certificate, now time.Time) error {
	switch {
	case !ca.IsRoot(root):
		return fmt.Errorf("%s is not a root, because %s signed it: give the self-signed certificate with --root",
			root.Subject, root.Issuer)
	case !root.IsCA || root.KeyUsage&x509.KeyUsageCertSign == 0 || root.MaxPathLen == 0:
		return fmt.Errorf("%s cannot sign issuing CAs: give the certificate of a CA with the key usage keyCertSign and a path "+
			"length of at least 1", root.Subject)
	case now.After(root.NotAfter):
		return fmt.Errorf("%s expired at %s: make a new root", root.Subject, root.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// checkCross returns an error for a certificate that is not a cross-certificate between two of the roots, or with which
// relying parties could not verify the installed CAs under the root that it is for.
func checkCross(cross *x509.Certificate, roots []*x509.Certificate, installed authorities, now time.Time) error {
	signer, subject := ca.CrossRoots(cross, roots)
	if signer == nil || subject == nil {
		return fmt.Errorf("--cross-certificate %s, signed by %s: both must be roots that are installed, with these names and keys: "+
			"install the missing root first", cross.Subject, cross.Issuer)
	}
	if signer.MaxPathLen >= 0 && signer.MaxPathLen < 2 || cross.MaxPathLen == 0 {
		return fmt.Errorf("--cross-certificate %s: no issuing CA may be below it: the path length of the root %s must be at least 2, "+
			"and that of the cross-certificate at least 1", cross.Subject, signer.Subject)
	}
	if err := checkCrossChain(cross, signer, nil, now); err != nil {
		return err
	}
	for _, a := range installed {
		if a.Key == "" || now.After(a.certificate.NotAfter) {
			continue
		}
		iss, err := ca.ChainOf(a.certificate, installed.certificates())
		if err == nil && iss.Root.Equal(subject) {
			err = checkCrossChain(cross, signer, iss.Chain, now)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkCrossChain verifies a chain that ends in a cross-certificate, for relying parties that trust only the root that
// signed it. The chain begins with an issuing CA, or is empty.
func checkCrossChain(cross, signer *x509.Certificate, chain []*x509.Certificate, now time.Time) error {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(signer)
	chain = append(slices.Clone(chain), cross)
	for _, c := range chain {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("relying parties that trust only the root %s could not verify %s: %w: make the cross-certificate with "+
			"brevet ceremony cross-sign", signer.Subject, chain[0].Subject, err)
	}
	return nil
}
