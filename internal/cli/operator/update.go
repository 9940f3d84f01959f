package operator

import (
	"context"
	"fmt"
	"maps"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/brevet-pki/brevet/internal/cli"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// update holds the flags of brevet identity update.
type update struct {
	profile     string
	set         labels
	remove      []string
	dns, ips    []string
	noDNS, noIP bool
	evidence    string
	roles       []string
	granted     []brevetv1.OperatorRole // roles, parsed
}

// updateFlags lists the flags that change an attribute of the identity.
var updateFlags = []string{"profile", "label", "remove-label", "dns", "ip", "no-dns", "no-ip", "evidence", "role"}

// noEvidence is the value of --evidence for an identity that is tied to no device.
const (
	noEvidence    = "none"
	usageEvidence = "device whose evidence can enroll the identity, as KIND:SHA256, or none"
)

// usageRole describes the flag --role.
const usageRole = "role of an operator: admin, registrar, revoker or auditor; may be given again"

func newIdentityUpdate() *cobra.Command {
	var u update
	cmd := identityChange("update", "Change profile, labels, names, roles or evidence of an identity",
		func(ctx context.Context, c brevetv1.IdentityServiceClient, id string) (*brevetv1.Identity, error) {
			read, err := c.GetIdentity(ctx, &brevetv1.GetIdentityRequest{Id: id})
			if err != nil {
				return nil, err
			}
			resp, err := c.UpdateIdentity(ctx, u.request(id, read.GetIdentity()))
			return resp.GetIdentity(), err
		}, nil)
	cmd.Long = "update changes what is on record of an identity. Its next certificates follow; those that it has keep what they say.\n" +
		"Tokens that were created for it before can enroll it no more.\n\n" +
		"--label sets one label and --remove-label removes one; the others stay. --dns replaces all DNS names and --ip all IP\n" +
		"addresses; --no-dns and --no-ip remove them. --role replaces all roles of an operator. If somebody else changes the\n" +
		"identity meanwhile, update changes nothing.\n\n" +
		"--evidence ties the identity to another device, named as in create. The server then refuses evidence of the\n" +
		"previous device, but revokes no certificates. With --evidence none, an identity without certificates belongs to the\n" +
		"next device that the policy lets enroll; an enrolled one needs a token. A retired identity allows only that: its\n" +
		"device can then enroll as another identity."
	cmd.Example = "  brevet identity update device/42 --label site=plant-9 --remove-label batch\n" +
		"  brevet identity update web/1 --dns web.fleet.example --dns www.fleet.example\n" +
		"  brevet identity update device/43 --evidence none\n" +
		"  brevet identity update brevet/operator/bob --role revoker --role auditor"
	f := cmd.Flags()
	f.StringVar(&u.profile, "profile", "", "certificate profile")
	f.Var(&u.set, "label", "label of the identity")
	f.StringArrayVar(&u.remove, "remove-label", nil, "name of a label to remove; may be given again")
	f.StringArrayVar(&u.dns, "dns", nil, "DNS name that certificates of the identity contain; may be given again")
	f.StringArrayVar(&u.ips, "ip", nil, "IP address that certificates of the identity contain; may be given again")
	f.BoolVar(&u.noDNS, "no-dns", false, "remove all DNS names from the identity")
	f.BoolVar(&u.noIP, "no-ip", false, "remove all IP addresses from the identity")
	f.StringVar(&u.evidence, "evidence", "", usageEvidence)
	f.StringArrayVar(&u.roles, "role", nil, usageRole)
	cmd.MarkFlagsMutuallyExclusive("dns", "no-dns")
	cmd.MarkFlagsMutuallyExclusive("ip", "no-ip")
	inner := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, name := range u.remove {
			if _, both := u.set[name]; both {
				return cli.WrongUse(fmt.Sprintf("--remove-label %s: --label sets it; give one of the two", name))
			}
		}
		if cmd.Flags().Changed("evidence") && u.evidence == "" {
			return cli.WrongUse("--evidence is empty: give KIND:SHA256, or " + noEvidence)
		}
		var err error
		if u.granted, err = readRoles(u.roles); err != nil {
			return err
		}
		for _, name := range updateFlags {
			if cmd.Flags().Changed(name) {
				return inner(cmd, args)
			}
		}
		const flags = "--profile, --label, --remove-label, --dns, --no-dns, --ip, --no-ip, --evidence or --role"
		return cli.WrongUse("say what to change: " + flags)
	}
	return cmd
}

// request returns a request that applies the flags to an identity. id is the record that the server returned.
func (u *update) request(name string, id *brevetv1.Identity) *brevetv1.UpdateIdentityRequest {
	req := &brevetv1.UpdateIdentityRequest{Id: name, Revision: id.GetRevision(), Spec: &brevetv1.IdentitySpec{Profile: u.profile}, UpdateMask: &fieldmaskpb.FieldMask{}}
	mask := func(path string) { req.UpdateMask.Paths = append(req.UpdateMask.Paths, path) }
	if u.profile != "" {
		mask("profile")
	}
	if len(u.set)+len(u.remove) > 0 {
		mask("labels")
		all := maps.Clone(id.GetLabels())
		if all == nil {
			all = map[string]string{}
		}
		maps.Copy(all, u.set)
		for _, name := range u.remove {
			delete(all, name)
		}
		req.Spec.Labels = all
	}
	if u.evidence != "" {
		mask("evidence_subject")
		if u.evidence != noEvidence {
			req.Spec.EvidenceSubject = u.evidence
		}
	}
	if len(u.granted) > 0 {
		mask("roles")
		req.Spec.Roles = u.granted
	}
	changesDNS, changesIP := u.noDNS || len(u.dns) > 0, u.noIP || len(u.ips) > 0
	if changesDNS || changesIP {
		mask("names")
		req.Spec.Names = namesFrom(u.dns, u.ips)
		for _, n := range id.GetNames() { // keep the names of a kind that no flag changes
			switch n.GetKind().(type) {
			case *brevetv1.Name_Dns:
				if changesDNS {
					continue
				}
			case *brevetv1.Name_Ip:
				if changesIP {
					continue
				}
			}
			req.Spec.Names = append(req.Spec.Names, n)
		}
	}
	return req
}
