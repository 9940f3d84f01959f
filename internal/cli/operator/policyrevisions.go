package operator

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

var policyHeading = []string{"REVISION", "APPLIED", "BY", "SHA-256", "COMMENT"}

func printPolicy(p *output.Printer, r *brevetv1.Policy) error {
	return p.Record(r, strconv.FormatInt(r.GetRevision(), 10), r.GetApplyTime().AsTime().UTC().Format(time.RFC3339),
		r.GetAppliedBy(), hex.EncodeToString(r.GetSha256())[:16], r.GetComment())
}

func newPolicyApply() *cobra.Command {
	var comment string
	var based int64
	cmd := &cobra.Command{
		Use: "apply FILE", Short: "Make a document the newest revision of the policy", Args: cobra.ExactArgs(1),
		Long: "apply sends a document to the server, which checks it and decides about all later requests with it. If the\n" +
			"document has faults, the policy stays as it is. With --based, apply fails if another revision is the newest one\n" +
			"meanwhile, so that nobody's change is lost.",
		Example: "  brevet policy apply policy.yaml --comment 'accept line 7'",
		RunE: func(cmd *cobra.Command, args []string) error {
			document, err := readPolicyFile(args[0])
			if err != nil {
				return err
			}
			p, err := output.New(cmd, policyHeading...)
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				policies := brevetv1.NewPolicyServiceClient(conn)
				if !cmd.Flags().Changed("based") {
					newest, err := policies.GetPolicy(ctx, &brevetv1.GetPolicyRequest{})
					if err != nil {
						return err
					}
					based = newest.GetPolicy().GetRevision()
				}
				resp, err := policies.ApplyPolicy(ctx, &brevetv1.ApplyPolicyRequest{Document: document, BasedRevision: based, Comment: comment})
				if err != nil {
					return err
				}
				if n := resp.GetPolicy().GetRevision(); n <= based {
					fmt.Fprintf(cmd.ErrOrStderr(), "unchanged, still revision %d\n", n)
				}
				return errors.Join(printPolicy(p, resp.GetPolicy()), p.Close())
			})
		},
	}
	output.Flag(cmd)
	cmd.Flags().StringVar(&comment, "comment", "", "free text that the log records as the reason")
	cmd.Flags().Int64Var(&based, "based", 0, "newest revision of the policy that you have read (default: the newest one)")
	return cmd
}

func newPolicyShow() *cobra.Command {
	return &cobra.Command{
		Use: "show [REVISION]", Short: "Print the document of a revision, or of the newest one", Args: cobra.MaximumNArgs(1),
		Example: "  brevet policy show > policy.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			revisions, err := parseRevisions(args)
			if err != nil {
				return err
			}
			req := &brevetv1.GetPolicyRequest{}
			if len(revisions) == 1 {
				req.Revision = revisions[0]
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				resp, err := brevetv1.NewPolicyServiceClient(conn).GetPolicy(ctx, req)
				if err != nil {
					return err
				}
				_, err = cmd.OutOrStdout().Write(resp.GetPolicy().GetDocument())
				return err
			})
		},
	}
}

// parseRevisions parses the numbers of revisions.
func parseRevisions(args []string) ([]int64, error) {
	var revisions []int64
	for _, arg := range args {
		n, err := strconv.ParseInt(arg, 10, 64)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is not a revision: give a number from brevet policy list", arg)
		}
		revisions = append(revisions, n)
	}
	return revisions, nil
}

func newPolicyDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff (FILE | OLD [NEW])", Short: "Print the differences between two revisions, or to the newest one", Args: cobra.RangeArgs(1, 2),
		Long: "diff prints the lines in which the documents of two revisions differ, as a unified diff. It prints nothing if they\n" +
			"are equal. With a file, it prints what brevet policy apply would change in the newest revision.",
		Example: "  brevet policy diff policy.yaml\n  brevet policy diff 3 4",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := strconv.ParseInt(args[0], 10, 64); err != nil && len(args) == 1 {
				return diffFile(cmd, args[0])
			}
			revisions, err := parseRevisions(args)
			if err != nil {
				return err
			}
			if len(revisions) == 1 {
				revisions = append(revisions, 0)
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				var names [2]string
				var documents [2][]byte
				for i, n := range revisions {
					resp, err := brevetv1.NewPolicyServiceClient(conn).GetPolicy(ctx, &brevetv1.GetPolicyRequest{Revision: n})
					if err != nil {
						return err
					}
					names[i] = fmt.Sprintf("revision-%d", resp.GetPolicy().GetRevision())
					documents[i] = resp.GetPolicy().GetDocument()
				}
				_, err := cmd.OutOrStdout().Write(diff.Diff(names[0], documents[0], names[1], documents[1]))
				return err
			})
		},
	}
}

// diffFile prints the differences from the newest revision to the document in a file.
func diffFile(cmd *cobra.Command, path string) error {
	document, err := readPolicyFile(path)
	if err != nil {
		return err
	}
	return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
		resp, err := brevetv1.NewPolicyServiceClient(conn).GetPolicy(ctx, &brevetv1.GetPolicyRequest{})
		if err != nil {
			return err
		}
		newest := resp.GetPolicy()
		name := fmt.Sprintf("revision-%d", newest.GetRevision())
		_, err = cmd.OutOrStdout().Write(diff.Diff(name, newest.GetDocument(), path, document))
		return err
	})
}

func newPolicyList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the revisions of the policy, newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &brevetv1.ListPoliciesRequest{PageSize: listPage}
			return list(cmd, policyHeading, func(ctx context.Context, conn *grpc.ClientConn, page string) ([]*brevetv1.Policy, string, error) {
				req.PageToken = page
				resp, err := brevetv1.NewPolicyServiceClient(conn).ListPolicies(ctx, req)
				return resp.GetPolicies(), resp.GetNextPageToken(), err
			}, printPolicy)
		},
	}
	output.Flag(cmd)
	return cmd
}

func newPolicyExplain() *cobra.Command {
	req := new(brevetv1.ExplainPolicyRequest)
	cmd := &cobra.Command{
		Use: "explain [FILE]", Short: "Say what each rule decides about evidence, and why", Args: cobra.MaximumNArgs(1),
		Long: "explain reads facts from FILE, a YAML document with the keys evidence and facts of a case in a table of brevet\n" +
			"policy test. For each rule of the newest revision it says whether it matches, and which parts of its condition are\n" +
			"false. It issues nothing.\n\n" +
			"With --request, explain does so for an enrollment that no rule has granted. The server knows the last 256 since it\n" +
			"was started, and prints no facts of them.",
		Example: "  brevet policy explain facts.yaml\n  brevet policy explain --request x5c:9c5f35ae5b1b4bd4",
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (req.GetRequest() != "") {
				return errors.New("give a file with facts, or --request with the actor of a refused request from brevet log list")
			}
			var err error
			if len(args) == 1 {
				if req.Facts, err = readPolicyFile(args[0]); err != nil {
					return err
				}
			}
			p, err := output.New(cmd)
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				resp, err := brevetv1.NewPolicyServiceClient(conn).ExplainPolicy(ctx, req)
				if err != nil {
					return err
				}
				if by := resp.GetRefusedRevision(); by != 0 && by != resp.GetRevision() {
					_, err = fmt.Fprintf(cmd.ErrOrStderr(), "revision %d refused the request at %s; this is what revision %d decides\n",
						by, resp.GetRefuseTime().AsTime().UTC().Format(time.RFC3339), resp.GetRevision())
				}
				if !p.JSON {
					err = errors.Join(err, p.Sentence(nil, fmt.Sprintf("the request has the evidence [%s]", strings.Join(resp.GetEvidence(), ", "))))
				}
				for _, r := range resp.GetRules() {
					err = errors.Join(err, p.Sentence(r, r.GetExplanation()))
				}
				return errors.Join(err, p.Close())
			})
		},
	}
	output.Flag(cmd)
	cmd.Flags().StringVar(&req.Request, "request", "", "actor of the refused request in the log, or SHA-256 of its evidence")
	return cmd
}
