package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// NewIdentity returns brevet identity, with subcommands that create, list and change identities.
func NewIdentity() *cobra.Command {
	cmd := &cobra.Command{Use: "identity", Short: "Register machines and people, change, suspend, resume and retire them"}
	client.Flags(cmd)
	cmd.AddCommand(newIdentityCreate(), newIdentityList(), newIdentityShow(), newIdentityUpdate(),
		commented("suspend", "Put an identity and its certificates on hold", "put on hold",
			func(ctx context.Context, c brevetv1.IdentityServiceClient, id, comment string) (changing, error) {
				return c.SuspendIdentity(ctx, &brevetv1.SuspendIdentityRequest{Id: id, Comment: comment})
			}, explainSuspension),
		commented("resume", "Take off hold what suspend put on hold", "taken off hold",
			func(ctx context.Context, c brevetv1.IdentityServiceClient, id, comment string) (changing, error) {
				return c.ResumeIdentity(ctx, &brevetv1.ResumeIdentityRequest{Id: id, Comment: comment})
			}, explainResumption),
		newIdentityRetire(),
	)
	return cmd
}

var identityHeading = []string{"IDENTITY", "KIND", "PROFILE", "STATE", "NAMES", "LABELS", "ROLES"}

func printIdentity(p *output.Printer, id *brevetv1.Identity) error {
	all := labels(id.GetLabels())
	return p.Record(id, id.GetId(), output.Enum(id.GetKind()), id.GetProfile(), output.Enum(id.GetState()), dash(namesText(id.GetNames())), dash(all.list()), dash(rolesText(id.GetRoles())))
}

func dash(list []string) string {
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, ",")
}

func newIdentityCreate() *cobra.Command {
	spec := &brevetv1.IdentitySpec{}
	var kind string
	var given labels
	var dns, ips, roles []string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Register an identity", Args: cobra.ExactArgs(1),
		Long: "create registers an identity. Without --profile, its certificates have the profile that is named like its kind.\n" +
			"--label may be given again, for several labels.\n\n" +
			"--evidence names the one device whose evidence can enroll the identity, as KIND:SHA256. For a TPM, it is the\n" +
			"SHA-256 of the endorsement key's SubjectPublicKeyInfo, which brevet-agent evidence prints. Registered identities are\n" +
			"then an allow list of devices.\n" +
			"Without --evidence, the identity belongs to the first device that the policy lets enroll.\n\n" +
			"An operator needs one --role at least: admin, registrar, revoker or auditor. With labels, a registrar acts only on\n" +
			"identities that have the same labels.",
		Example: "  brevet identity create device/42 --kind device --label site=plant-7\n" +
			"  openssl pkey -pubin -in ek.pem -outform DER | sha256sum\n" +
			"  brevet identity create device/43 --evidence tpm:SHA256\n" +
			"  brevet identity create web/1 --kind workload --profile server --dns web.fleet.example\n" +
			"  brevet identity create line-3 --kind operator --role registrar --label line=3",
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if spec.Kind, err = readKind("--kind", kind); err != nil {
				return err
			}
			if spec.Roles, err = readRoles(roles); err != nil {
				return err
			}
			spec.Labels, spec.Names = given, namesFrom(dns, ips)
			if spec.GetEvidenceSubject() == noEvidence {
				spec.EvidenceSubject = ""
			}
			p, err := output.New(cmd, identityHeading...)
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				resp, err := brevetv1.NewIdentityServiceClient(conn).CreateIdentity(ctx, &brevetv1.CreateIdentityRequest{Id: args[0], Spec: spec})
				if err != nil {
					return err
				}
				return errors.Join(printIdentity(p, resp.GetIdentity()), p.Close())
			})
		},
	}
	output.Flag(cmd)
	f := cmd.Flags()
	f.StringVar(&kind, "kind", "device", "kind of the identity: device, workload or operator")
	f.StringVar(&spec.Profile, "profile", "", "certificate profile")
	f.Var(&given, "label", "label of the identity")
	f.StringArrayVar(&dns, "dns", nil, "DNS name that certificates of the identity contain; may be given again")
	f.StringArrayVar(&ips, "ip", nil, "IP address that certificates of the identity contain; may be given again")
	f.StringVar(&spec.EvidenceSubject, "evidence", "", usageEvidence)
	f.StringArrayVar(&roles, "role", nil, usageRole)
	return cmd
}

func newIdentityList() *cobra.Command {
	var filter identityFilter
	cmd := &cobra.Command{
		Use: "list", Short: "List the identities in the order of their names", Args: cobra.NoArgs,
		Long: "list prints the identities that match all flags. The states are registered, enrolled, suspended and retired.\n" +
			"--without-certificate selects those whose certificates have all expired, or that have none.",
		Example: "  brevet identity list --kind device --state enrolled --not-renewed-since 2026-03-01",
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := filter.read()
			if err != nil {
				return err
			}
			return list(cmd, identityHeading, func(ctx context.Context, conn *grpc.ClientConn, page string) ([]*brevetv1.Identity, string, error) {
				req.PageToken = page
				resp, err := brevetv1.NewIdentityServiceClient(conn).ListIdentities(ctx, req)
				return resp.GetIdentities(), resp.GetNextPageToken(), err
			}, printIdentity)
		},
	}
	output.Flag(cmd)
	filter.flags(cmd)
	return cmd
}

// identityFilter holds the flags of brevet identity list.
type identityFilter struct {
	kind, state, profile string
	label                labels
	withoutCertificate   bool
	notRenewedSince      string
}

func (i *identityFilter) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&i.kind, "kind", "", "kind of the identity: device, workload or operator")
	stateFlag(cmd, &i.state)
	f.StringVar(&i.profile, "profile", "", "certificate profile")
	f.Var(&i.label, "label", "label of the identity")
	f.BoolVar(&i.withoutCertificate, "without-certificate", false, "select identities without an unexpired certificate")
	notRenewedFlag(cmd, &i.notRenewedSince)
}

// read returns the request for the first page.
func (i *identityFilter) read() (*brevetv1.ListIdentitiesRequest, error) {
	req := &brevetv1.ListIdentitiesRequest{PageSize: listPage, Profile: i.profile, WithoutUnexpiredCertificate: i.withoutCertificate}
	kind, err := readKind("--kind", i.kind)
	if err != nil {
		return nil, err
	}
	if kind != 0 {
		req.Kinds = []brevetv1.IdentityKind{kind}
	}
	state, err := enumNumber("--state", brevetv1.IdentityState(0).Descriptor(), i.state)
	if err != nil {
		return nil, err
	}
	if state != 0 {
		req.States = []brevetv1.IdentityState{brevetv1.IdentityState(state)}
	}
	if req.Label, err = i.label.one(); err != nil {
		return nil, err
	}
	req.NotRenewedSinceTime, err = readTime("--not-renewed-since", i.notRenewedSince)
	return req, err
}

// changing is the response to a request that changes an identity.
type changing interface {
	proto.Message

	GetIdentity() *brevetv1.Identity
	GetAffected() *brevetv1.AffectedCertificates
}

// commented returns a command that changes an identity and has the flag --comment. The verb says in the output what
// happened to the affected certificates. explain may be nil; see identityChange.
func commented(name, short, verb string, do func(ctx context.Context, c brevetv1.IdentityServiceClient, id, comment string) (changing, error),
	explain func(io.Writer, string, validity),
) *cobra.Command {
	var comment string
	var cmd *cobra.Command
	cmd = identityChange(name, short, func(ctx context.Context, c brevetv1.IdentityServiceClient, id string) (*brevetv1.Identity, error) {
		r, err := do(ctx, c, id, comment)
		if err != nil {
			return nil, err
		}
		printAffected(cmd, verb, r.GetAffected())
		warnUncopied(cmd, r)
		return r.GetIdentity(), nil
	}, explain)
	commentFlag(cmd, &comment)
	return cmd
}

func newIdentityRetire() *cobra.Command {
	var since string
	cmd := commented("retire", "End an identity for ever and revoke its certificates", "revoked",
		func(ctx context.Context, c brevetv1.IdentityServiceClient, id, comment string) (changing, error) {
			at, err := readTime("--invalid-since", since)
			if err != nil {
				return nil, err
			}
			return c.RetireIdentity(ctx, &brevetv1.RetireIdentityRequest{Id: id, Comment: comment, InvalidityTime: at})
		}, nil)
	sinceFlag(cmd, &since)
	return cmd
}

func newIdentityShow() *cobra.Command {
	var cmd *cobra.Command
	cmd = identityChange("show", "Show one identity",
		func(ctx context.Context, c brevetv1.IdentityServiceClient, id string) (*brevetv1.Identity, error) {
			r, err := c.GetIdentity(ctx, &brevetv1.GetIdentityRequest{Id: id})
			if subject := r.GetIdentity().GetEvidenceSubject(); subject != "" {
				fmt.Fprintf(cmd.ErrOrStderr(), "It is tied to the evidence %s.\n", subject)
			}
			if terms := r.GetIdentity().GetEnrollmentTerms(); terms != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "The rule with which it enrolled requires of its certificates: %s.\n", termsText(terms))
			}
			return r.GetIdentity(), err
		}, nil)
	return cmd
}

// termsText describes the terms of an enrollment.
func termsText(t *brevetv1.EnrollmentTerms) string {
	var parts []string
	if t.GetHardwareKey() {
		parts = append(parts, "a key in hardware")
	}
	if len(t.GetKeyTypes()) > 0 {
		parts = append(parts, "a key of the type "+strings.Join(t.GetKeyTypes(), " or "))
	}
	if t.GetMaxLifetime() != nil {
		parts = append(parts, "a lifetime of at most "+pki.FormatDuration(t.GetMaxLifetime().AsDuration()))
	}
	return strings.Join(parts, ", ")
}

// identityChange returns a command that calls do with one identity and then prints its record. If explain is not nil,
// the command calls it to print on standard error what the change means for the identity's certificates.
func identityChange(name, short string, do func(context.Context, brevetv1.IdentityServiceClient, string) (*brevetv1.Identity, error),
	explain func(io.Writer, string, validity),
) *cobra.Command {
	cmd := &cobra.Command{
		Use: name + " NAME", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := output.New(cmd, identityHeading...)
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				id, err := do(ctx, brevetv1.NewIdentityServiceClient(conn), args[0])
				if err != nil {
					return err
				}
				if explain != nil {
					v, err := validityOf(ctx, brevetv1.NewCertificateServiceClient(conn), id.GetId(), time.Now())
					if err != nil {
						fmt.Fprintf(cmd.ErrOrStderr(), "Done; the certificates of %s cannot be counted: %v.\n", id.GetId(), err)
					} else {
						explain(cmd.ErrOrStderr(), id.GetId(), v)
					}
				}
				return errors.Join(printIdentity(p, id), p.Close())
			})
		},
	}
	output.Flag(cmd)
	return cmd
}

// eachOf calls visit for each message of a stream, up to the end of the stream.
func eachOf[M any](recv func() (M, error), visit func(M) error) error {
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := visit(m); err != nil {
			return fmt.Errorf("read the response: %w", err)
		}
	}
}
