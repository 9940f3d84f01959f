package operator

import (
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

// warnUncopied prints a warning if a response says that the second copy of the log's archive lacks the change. A server
// without a second copy leaves the field unset.
func warnUncopied(cmd *cobra.Command, resp proto.Message) {
	m := resp.ProtoReflect()
	copied := m.Descriptor().Fields().ByName("copied")
	if copied == nil || !m.Has(copied) || m.Get(copied).Bool() {
		return
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "Warning: this is in effect, but the second copy of the log's archive does not have it yet. The server continues to copy.\n"+
		"Next: look for \"a task of the log failed\" in the server's log, and repair the disk of archive.copy.")
}
