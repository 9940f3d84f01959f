package ceremony

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/pki"
)

func newCeremonySign() *cobra.Command {
	var t signerFlags
	var s signingFlags
	var csrFile string
	var existing []string
	cmd := &cobra.Command{
		Use: "sign", Short: "Sign an issuing CA's request with the root key", Args: cobra.NoArgs,
		Long: "sign makes the certificate of an issuing CA for one trust domain, which cannot change later. By default the certificate does not limit what the CA may certify,\n" +
			"because mbedTLS and rustls (Deno among others) refuse every certificate under a limit. --constrain adds a\n" +
			"critical name constraint (RFC 5280 section 4.2.1.10) for the trust domain, and with --permit-dns for DNS domains.\n" +
			"Use it if the root is in the trust stores of systems, and every relying party can read it: docs/relying-parties.md.",
		Example: "  brevet ceremony sign --hsm-label root --pin-file pin --key-label root-g1 --root root.crt --csr issuing.csr \\\n" +
			"      --trust-domain fleet.example --public-url http://pki.fleet.example --out issuing.crt",
		RunE: func(cmd *cobra.Command, _ []string) error {
			life, err := pki.ParseDuration(s.lifetime)
			if err != nil {
				return cli.WrongFlag("--lifetime", err)
			}
			if err := s.check(); err != nil {
				return err
			}
			root, err := file.ReadCertificate(s.root)
			if err != nil {
				return err
			}
			csr, err := file.ReadRequest(csrFile)
			if err != nil {
				return err
			}
			if err := file.Vacant(s.out, paperOf(s.out)); err != nil {
				return err
			}
			spec := ceremony.SignSpec{Lifetime: life, TrustDomain: s.trustDomain, Constrain: s.constrain, PermittedDNS: s.permittedDNS}
			spec.CRLURL, spec.IssuerURL = s.urls(root)
			for _, path := range existing {
				cert, err := file.ReadCertificate(path)
				if err != nil {
					return err
				}
				spec.Existing = append(spec.Existing, cert)
			}
			return t.find(cmd.Context(), root, func(signer crypto.Signer) error {
				spec.Now = time.Now()
				der, err := ceremony.Sign(root, signer, csr.Raw, spec)
				if err != nil {
					return err
				}
				cert, err := x509.ParseCertificate(der)
				if err != nil {
					return err
				}
				return record(cmd, s.out, "CERTIFICATE", der, ceremony.Transcript{
					Act: "signed an issuing CA's certificate with the root key", HSM: t.transcriptToken(), TrustDomain: s.trustDomain, Certificate: cert,
				}, "brevet ceremony crl …, then brevet ceremony install …, on the issuing machine")
			})
		},
	}
	t.add(cmd)
	s.add(cmd)
	f := cmd.Flags()
	f.StringVar(&csrFile, "csr", "", "file that contains the CSR of the issuing CA")
	f.StringArrayVar(&existing, "existing", nil, "file that contains the issuing CA's certificate of an earlier generation; may be given again")
	f.StringVar(&s.lifetime, "lifetime", "1825d", "how long the token, external key, certificate or CRL is valid, such as 15m or 90d")
	f.StringVar(&s.out, "out", "issuing.crt", "file that the command writes; it must not exist")
	_ = cmd.MarkFlagRequired("csr")
	return cmd
}

func newCeremonyCRL() *cobra.Command {
	var t signerFlags
	var rootFile, previous, lifetime, out string
	var revoke []string
	cmd := &cobra.Command{
		Use: "crl", Short: "Sign the root's CRL, months ahead", Args: cobra.NoArgs,
		Long: "crl signs the CRL of a root. Entries and the number come from the CRL before it (--previous), so that no revocation\n" +
			"is lost and no number is used twice; only the first one has none. Sign the next CRL well before this one expires.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			life, err := pki.ParseDuration(lifetime)
			if err != nil {
				return cli.WrongFlag("--lifetime", err)
			}
			root, err := file.ReadCertificate(rootFile)
			if err != nil {
				return err
			}
			now := time.Now()
			spec := ceremony.CRLSpec{Number: big.NewInt(1), NextUpdate: now.Add(life), Now: now}
			if previous != "" {
				if err := continueFrom(previous, &spec); err != nil {
					return err
				}
			}
			if spec.Revoke, err = revocationsOf(revoke, root, now); err != nil {
				return err
			}
			if err := file.Vacant(out, paperOf(out)); err != nil {
				return err
			}
			return t.find(cmd.Context(), root, func(signer crypto.Signer) error {
				der, err := ceremony.RootCRL(root, signer, spec)
				if err != nil {
					return err
				}
				crl, err := x509.ParseRevocationList(der)
				if err != nil {
					return err
				}
				return record(cmd, out, "X509 CRL", der, ceremony.Transcript{
					Act: "signed the root's CRL", HSM: t.transcriptToken(), CRL: crl,
				}, "brevet ceremony install … the first time, brevet crl import "+out+" later, on the issuing machine")
			})
		},
	}
	t.add(cmd)
	f := cmd.Flags()
	f.StringVar(&rootFile, "root", "root.crt", "file that contains the root certificate")
	f.StringVar(&previous, "previous", "", "file that contains the root's previous CRL")
	f.StringArrayVar(&revoke, "revoke", nil, "certificate file to revoke and the reason, such as old.crt:superseded; may be given again")
	f.StringVar(&lifetime, "lifetime", "180d", "how long the token, external key, certificate or CRL is valid, such as 15m or 90d")
	f.StringVar(&out, "out", "root.crl", "file that the command writes; it must not exist")
	return cmd
}

func continueFrom(path string, spec *ceremony.CRLSpec) error {
	var err error
	if spec.Previous, err = file.ReadCRL(path); err != nil {
		return err
	}
	if spec.Previous.Number == nil {
		return fmt.Errorf("%s has no CRL number: it is not a CRL that a ceremony made", path)
	}
	spec.Number = new(big.Int).Add(spec.Previous.Number, big.NewInt(1))
	return nil
}

func revocationsOf(list []string, root *x509.Certificate, now time.Time) ([]ceremony.Revocation, error) {
	var all []ceremony.Revocation
	for _, text := range list {
		colon := strings.LastIndexByte(text, ':') // the file's name may contain more colons
		if colon < 0 {
			return nil, cli.WrongUse(fmt.Sprintf("--revoke %q: write FILE:REASON, such as old.crt:superseded", text))
		}
		path := text[:colon]
		reason, err := pki.ParseReason(text[colon+1:])
		if err != nil {
			return nil, cli.WrongFlag("--revoke", err)
		}
		cert, err := file.ReadCertificate(path)
		if err != nil {
			return nil, err
		}
		if cert.CheckSignatureFrom(root) != nil {
			return nil, fmt.Errorf("%s was not signed by %s, whose CRL can revoke only what it signed: give the certificate that is meant", path, root.Subject)
		}
		serial, err := pki.SerialFromInt(cert.SerialNumber)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, ceremony.Revocation{Serial: serial, Reason: reason, At: now})
	}
	return all, nil
}
