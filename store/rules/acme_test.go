package rules_test

import (
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/rules"
)

// TestNewOrderIsRefusedBeforeReading checks that an order that is refused anyway causes no search for other orders.
func TestNewOrderIsRefusedBeforeReading(t *testing.T) {
	valid := acme.Account{Status: acme.AccountValid}
	replacing := acme.Order{Replaces: certificate(t, 1)}
	for _, c := range []struct {
		name    string
		account acme.Account
		order   acme.Order
		open    int
		want    pki.Rule
		reads   bool
	}{
		{"a deactivated account", acme.Account{Status: acme.AccountDeactivated}, replacing, 0, pki.RuleACMEAccountStatus, false},
		{"too many orders", valid, replacing, acme.MaxOpenOrders, pki.RuleACMEOrders, false},
		{"an order that replaces nothing", valid, acme.Order{}, 0, "", false},
		{"a replaced certificate", valid, replacing, 0, pki.RuleACMEReplaced, true},
	} {
		reads := false
		err := rules.CheckNewOrder(&c.account, &c.order, c.open, func() (bool, error) {
			reads = true
			return true, nil
		})
		refusal, ok := pki.AsRefusal(err)
		if ok != (c.want != "") || ok && refusal.Rule != c.want || reads != c.reads {
			t.Errorf("%s: %v, and the search ran: %t", c.name, err, reads)
		}
	}
}

// TestOrderWithoutAllAuthorizations checks that an order is never ready if the store lacks one of its authorizations.
func TestOrderWithoutAllAuthorizations(t *testing.T) {
	name := acme.Identifier{Type: acme.DNS, Value: "a.example"}
	valid := rules.ACMEAuthorization{Status: acme.StatusValid}
	for count, want := range []acme.Status{acme.StatusInvalid, acme.StatusInvalid, acme.StatusReady} {
		o := acme.Order{Identifiers: []acme.Identifier{name, name}, ExpiresAt: now.Add(time.Hour)}
		all := []rules.ACMEAuthorization{valid, valid}[:count]
		if rules.SetACMEOrderStatus(&o, all, now); o.Status != want {
			t.Errorf("with %d authorizations of 2, the order is %s", count, o.Status)
		}
	}
}
