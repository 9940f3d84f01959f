package validation_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/server/acme/validation"
)

func TestParseSettings(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.53": "[192.0.2.53:53]", "192.0.2.53:5353": "[192.0.2.53:5353]", "2001:db8::53": "[[2001:db8::53]:53]",
		"[2001:db8::53]:5353": "[[2001:db8::53]:5353]", "": "error", "dns.example": "error", "192.0.2.53:0": "error",
		"192.0.2.53:": "error", "a b": "error", "1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1 1.1.1.1": "error",
	} {
		texts := []string{text}
		if strings.Count(text, " ") > 1 {
			texts = strings.Fields(text)
		}
		got, err := validation.ParseResolvers(texts)
		if printed := fmt.Sprint(got); (err != nil) != (want == "error") || err == nil && printed != want {
			t.Errorf("the resolver %q is %s, %v", text, printed, err)
		}
	}
	for text, want := range map[string]string{
		"10.0.0.0/8": "[10.0.0.0/8]", "192.0.2.1": "[192.0.2.1/32]", "2001:db8::/32": "[2001:db8::/32]", "::1": "[::1/128]",
		"10.0.0.1/8": "error", "10.0.0.0": "[10.0.0.0/32]", "10/8": "error", "": "error", "::ffff:10.0.0.0/104": "error", "fe80::1%eth0": "error",
	} {
		got, err := validation.ParseNetworks([]string{text})
		if printed := fmt.Sprint(got); (err != nil) != (want == "error") || err == nil && printed != want {
			t.Errorf("the network %q is %s, %v", text, printed, err)
		}
	}
	file := "# comment\nnameserver 192.0.2.1\nsearch example\nnameserver fe80::1%eth0\nnameserver x\nnameserver\n" + strings.Repeat("nameserver 192.0.2.2\n", 9)
	got, err := validation.SystemResolvers(strings.NewReader(file))
	if want := "[192.0.2.1:53 [fe80::1%eth0]:53 192.0.2.2:53 192.0.2.2:53]"; fmt.Sprint(got) != want || err != nil {
		t.Errorf("the resolvers of the system are %v, %v", got, err)
	}
}
