package operator

import (
	"maps"
	"testing"

	"github.com/spf13/pflag"
)

func TestLabels(t *testing.T) {
	var l labels
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.Var(&l, "label", "")
	args := []string{"--label", "dn=CN=pump,O=Werk 7", "--label", "site=Berlin, Halle 3", "--label", `note=say "stop"`, "--label", "empty="}
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	want := labels{"dn": "CN=pump,O=Werk 7", "site": "Berlin, Halle 3", "note": `say "stop"`, "empty": ""}
	if !maps.Equal(l, want) {
		t.Errorf("the labels are %q", l)
	}
	if got := l.String(); got != `dn="CN=pump,O=Werk 7",empty=,note="say \"stop\"",site="Berlin, Halle 3"` {
		t.Errorf("they are shown as %s", got)
	}
	for _, wrong := range []string{"site", "=x", "dn=again"} {
		if l.Set(wrong) == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
}
