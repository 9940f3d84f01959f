package operator

import (
	"strings"
	"testing"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

func TestWarningAboutLostOrders(t *testing.T) {
	for want, k := range map[string]*brevetv1.ExternalKey{
		"brevet cert list --identity spiffe://fleet.example/shop/1,": {AccountId: "A", Identity: "spiffe://fleet.example/shop/1"},
		"brevet log list as those of the actor acme:A,":              {AccountId: "A", Rule: "web"},
	} {
		if have := noCertificates(k); !strings.Contains(have, want) {
			t.Errorf("the warning is %q, want the next step %q", have, want)
		}
	}
}
