//go:build judges

package ca_test

import "testing"

// TestDenoVerifies checks the row for rustls in docs/relying-parties.md. make test-judges installs Deno.
func TestDenoVerifies(t *testing.T) {
	open, limited := newScene(t, unconstrained), newScene(t, constrained)
	args := []string{"run", "--no-config", "--allow-net", "--allow-read", "testdata/interop/deno.js"}
	open.mustPrint(t, "hello", "deno", append(args, open.args()...)...)
	limited.mustPrint(t, "invalid peer certificate", "deno", append(args, limited.args()...)...)
}
