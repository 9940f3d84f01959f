package hsm

import "testing"

// TestSlots checks that Slots returns the slots without a login, including one whose token is not initialized.
func TestSlots(t *testing.T) {
	b := newTestBench(t, "first", "second")
	slots, err := b.reg.slots(t.Context(), b.module)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]Slot{}
	for _, s := range slots {
		found[s.Label] = s
	}
	for _, label := range []string{"first", "second"} {
		s, ok := found[label]
		if !ok || !s.Initialized || !s.UserPIN || s.Locked || s.Serial == "" || s.Manufacturer == "" || s.Model == "" {
			t.Errorf("the slot of %s is %+v", label, s)
		}
	}
	if s, ok := found[""]; !ok || s.Initialized || s.Serial != "" {
		t.Errorf("the empty slot is %+v, found %v", s, ok)
	}
	if _, err := b.reg.slots(t.Context(), "/nowhere.so"); err == nil {
		t.Error("a library that does not exist has slots")
	}
}
