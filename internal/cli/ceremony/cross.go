package ceremony

import (
	"crypto"
	"crypto/x509"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/pki"
)

// signingFlags are the flags that say what a root certifies, of the commands sign and cross-sign.
type signingFlags struct {
	root, trustDomain, lifetime, publicURL, out string
	permittedDNS                                []string
	constrain                                   bool
}

// add adds the flags except lifetime and out, whose defaults differ.
func (s *signingFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.root, "root", "root.crt", "file that contains the root certificate")
	f.StringVar(&s.trustDomain, "trust-domain", "", "SPIFFE trust domain")
	f.BoolVar(&s.constrain, "constrain", false, "limit the issuing CA to the trust domain; mbedTLS and rustls refuse such chains")
	f.StringArrayVar(&s.permittedDNS, "permit-dns", nil, "with --constrain: DNS domain whose names the issuing CA may certify; may be given again (default: any)")
	f.StringVar(&s.publicURL, "public-url", "", "URL from which relying parties fetch the root's certificate and CRL, such as http://pki.fleet.example")
	_ = cmd.MarkFlagRequired("trust-domain")
}

// check returns a *Usage for the first wrong flag.
func (s *signingFlags) check() error {
	if len(s.permittedDNS) > 0 && !s.constrain {
		return cli.WrongUse("--permit-dns: it limits nothing without --constrain: give both, or neither")
	}
	if err := ceremony.CheckTrustDomain(s.trustDomain); err != nil {
		return cli.WrongFlag("--trust-domain", err)
	}
	return nil
}

// urls returns the URLs of the root's CRL and certificate, or empty strings without --public-url.
func (s *signingFlags) urls(root *x509.Certificate) (crl, issuer string) {
	if s.publicURL == "" {
		return "", ""
	}
	base, id := strings.TrimSuffix(s.publicURL, "/"), pki.IssuerOf(root).Short()
	return base + "/crl/" + id + ".crl", base + "/ca/" + id + ".cer"
}

func newCeremonyCrossSign() *cobra.Command {
	var t signerFlags
	var s signingFlags
	var otherFile string
	cmd := &cobra.Command{
		Use: "cross-sign", Short: "Sign a certificate for another root with the root key", Args: cobra.NoArgs,
		Long: "cross-sign makes a cross-certificate: the root in --root certifies the subject and the key of the root in\n" +
			"--certificate. Relying parties that trust only the first root then accept certificates under the other one. Let the\n" +
			"old root sign the new one. To have relying parties with only the new root accept certificates under the old one,\n" +
			"also let the new root sign the old one. brevet ceremony install-root installs both. Without --lifetime, the\n" +
			"cross-certificate is valid as long as both roots are.",
		Example: "  brevet ceremony cross-sign --hsm-label root --pin-file pin --key-label root-g1 --root root.crt --certificate root-g2.crt \\\n" +
			"      --trust-domain fleet.example --public-url http://pki.fleet.example --out root-g2-by-g1.crt",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var life time.Duration
			if s.lifetime != "" {
				var err error
				if life, err = pki.ParseDuration(s.lifetime); err != nil {
					return cli.WrongFlag("--lifetime", err)
				}
			}
			if err := s.check(); err != nil {
				return err
			}
			root, err := file.ReadCertificate(s.root)
			if err != nil {
				return err
			}
			other, err := file.ReadCertificate(otherFile)
			if err != nil {
				return err
			}
			if err := file.Vacant(s.out, paperOf(s.out)); err != nil {
				return err
			}
			spec := ceremony.CrossSpec{Lifetime: life, TrustDomain: s.trustDomain, Constrain: s.constrain, PermittedDNS: s.permittedDNS}
			spec.CRLURL, spec.IssuerURL = s.urls(root)
			return t.find(cmd.Context(), root, func(signer crypto.Signer) error {
				spec.Now = time.Now()
				der, err := ceremony.CrossSign(root, signer, other, spec)
				if err != nil {
					return err
				}
				cert, err := x509.ParseCertificate(der)
				if err != nil {
					return err
				}
				return record(cmd, s.out, "CERTIFICATE", der, ceremony.Transcript{
					Act: "signed a cross-certificate for another root with the root key", HSM: t.transcriptToken(), TrustDomain: s.trustDomain, Certificate: cert,
				}, "brevet ceremony install-root …, on the issuing machine")
			})
		},
	}
	t.add(cmd)
	s.add(cmd)
	f := cmd.Flags()
	f.StringVar(&otherFile, "certificate", "", "file that contains the certificate of the CA")
	f.StringVar(&s.lifetime, "lifetime", "", "how long the token, external key, certificate or CRL is valid, such as 15m or 90d")
	f.StringVar(&s.out, "out", "cross.crt", "file that the command writes; it must not exist")
	_ = cmd.MarkFlagRequired("certificate")
	return cmd
}
