/*
 * A PKCS#11 module that passes calls to SoftHSM, and simulates a lost device if the file $SHIM_CONTROL exists. The file
 * contains a return value in hexadecimal, the name of a function, and "stays" or "returns". From then on the function
 * fails with this value. With "returns", the shim removes the file at once, and the function works again after
 * C_Finalize. With "stays", it works again after the test has removed the file and C_Finalize was called.
 */
#include <dlfcn.h>
#include <p11-kit/pkcs11.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static CK_FUNCTION_LIST shim, *real;
static char lost_call[32]; /* empty while the device works */
static CK_RV lost_code;

static CK_RV fails(const char *call)
{
	char name[32], stays[16];
	unsigned long code;
	FILE *control = fopen(getenv("SHIM_CONTROL"), "r");
	if (control != NULL) {
		if (fscanf(control, "%lx %31s %15s", &code, name, stays) == 3 && strcmp(name, call) == 0) {
			strcpy(lost_call, name);
			lost_code = code;
			if (strcmp(stays, "stays") != 0)
				unlink(getenv("SHIM_CONTROL"));
		}
		fclose(control);
	}
	return strcmp(lost_call, call) == 0 ? lost_code : CKR_OK;
}

static CK_RV sign_init(CK_SESSION_HANDLE s, CK_MECHANISM *m, CK_OBJECT_HANDLE k)
{
	CK_RV rv = fails("SignInit");
	return rv != CKR_OK ? rv : real->C_SignInit(s, m, k);
}

static CK_RV open_session(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify, CK_SESSION_HANDLE *s)
{
	CK_RV rv = fails("OpenSession");
	return rv != CKR_OK ? rv : real->C_OpenSession(slot, flags, application, notify, s);
}

static CK_RV login(CK_SESSION_HANDLE s, CK_USER_TYPE user, unsigned char *pin, unsigned long size)
{
	CK_RV rv = fails("Login");
	return rv != CKR_OK ? rv : real->C_Login(s, user, pin, size);
}

static CK_RV find_objects_init(CK_SESSION_HANDLE s, CK_ATTRIBUTE *template, unsigned long n)
{
	CK_RV rv = fails("FindObjectsInit");
	return rv != CKR_OK ? rv : real->C_FindObjectsInit(s, template, n);
}

static CK_RV finalize(void *reserved)
{
	if (access(getenv("SHIM_CONTROL"), F_OK) != 0)
		lost_call[0] = 0;
	return real->C_Finalize(reserved);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list)
{
	if (real == NULL) {
		CK_RV (*get)(CK_FUNCTION_LIST **);
		void *library = dlopen(getenv("SHIM_MODULE"), RTLD_NOW);
		if (library == NULL || (get = (CK_RV (*)(CK_FUNCTION_LIST **))dlsym(library, "C_GetFunctionList")) == NULL || get(&real) != CKR_OK)
			return CKR_GENERAL_ERROR;
		shim = *real;
		shim.C_SignInit = sign_init;
		shim.C_OpenSession = open_session;
		shim.C_Login = login;
		shim.C_FindObjectsInit = find_objects_init;
		shim.C_Finalize = finalize;
	}
	*list = &shim;
	return CKR_OK;
}
