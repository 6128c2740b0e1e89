/* The escrow program: the money of one job waits in a vault that nobody's key opens.
 *
 * Two accounts per escrow, both at addresses that only this program can sign for:
 *     state   PDA of ("escrow", client, job)   who may get the money, and how much at most; `State` below
 *     vault   PDA of ("vault", state)          an SPL token account that is its own authority
 *
 * What the client signs when it opens the escrow is never changed afterwards: the amount, the platform and its share,
 * who settles, who may name nodes, the deadline, and where everything else goes back to. Wallets are paid into their
 * associated token accounts, whose addresses are derived here, so that nobody can choose another account for them.
 *
 * Instructions. The first byte of the data says which; integers are little-endian.
 *
 *   0 open      fee_basis_points u16, amount u64, deadline i64 (unix seconds), job [32]
 *               payer ws, client s, state w, vault w, client token w, mint, authority, assigner, platform,
 *               token program, system program, then up to 4 nodes' wallets
 *   1 assign    no data
 *               assigner s, state w, then nodes' wallets
 *   2 settle    for each assigned node, in order: its pay before the platform's share, u64
 *   3 release   no data; the client pays everything to the one node that is assigned
 *   4 refund    no data; for anybody, after the deadline or when there is nobody left to pay
 *               these three: who signs (s, but for refund), state w, vault w, mint, platform token w, client token w,
 *               payer w, token program, then for settle and release the assigned nodes' token accounts w
 *   5 give up   no data; a node leaves, and can no longer be paid
 *               node s, state w
 *
 * settle, release and refund empty the vault of whatever it really holds, and close vault and state: the rent returns to
 * who paid it. The program keeps no data of its own and trusts no account but by its address or its owner.
 *
 * There is no library here: clang compiles this file alone, and link.py makes of it what a Solana loader takes.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned long long u64;
typedef long long i64;

typedef struct {
  u64 word[4];
} Key;

#define MAX_NODES 4
#define MAX_ACCOUNTS 16
#define PAYER_OF_OPEN 0
#define VAULT_SEEDS 3
#define FEE_WHOLE 10000             /* basis points */
#define LONGEST_S (400ll * 86400)   /* a deadline in milliseconds is a mistake, not a wish */
#define GROWTH_BYTES 10240          /* room that the loader leaves behind each account's data */
#define RENT_LAMPORTS_PER_BYTE 6960 /* two years of rent: what makes an account stay */
#define ACCOUNT_OVERHEAD_BYTES 128

#define TOKEN_ACCOUNT_BYTES 165
#define TOKEN_AMOUNT_AT 64
#define MINT_BYTES 82
#define MINT_DECIMALS_AT 44
#define MINT_INITIALIZED_AT 45

enum { OPEN, ASSIGN, SETTLE, RELEASE, REFUND, GIVE_UP };

/* Errors, as Custom(number). Numbers below 1000 are those of the programs we call. */
enum {
  BAD_DATA = 1000,  /* the data is none of the instructions above */
  BAD_ACCOUNTS,     /* too few or too many accounts */
  NOT_SIGNED,       /* whose signature is needed has not signed */
  BAD_PROGRAM,      /* the token or the system program is another one */
  BAD_ADDRESS,      /* state or vault are not at the derived address */
  BAD_MINT,         /* the mint is none, or not the one of this escrow */
  BAD_TERMS,        /* an amount of zero, or a fee of more than everything */
  BAD_DEADLINE,     /* not in the future, or more than 400 days away */
  NOT_OPEN,         /* the state is not that of an open escrow */
  BAD_DESTINATION,  /* money would go to an account that the client did not sign for */
  BAD_NODES,        /* too many nodes, one of them twice, or one that is not assigned */
  BAD_PAY,          /* the pays are together more than the amount */
  NOT_ALLOWED,      /* who signed has no say in this */
  TOO_EARLY,        /* a refund before the deadline, while somebody can still be paid */
  TOO_LITTLE,       /* the vault holds less than the amount */
};

/* What the loader and the runtime agree on: the C calling convention of Solana programs. */

typedef struct {
  Key *key;
  u64 *lamports;
  u64 data_len;
  u8 *data;
  Key *owner;
  u64 rent_epoch;
  u8 is_signer, is_writable, executable;
} Account;

typedef struct {
  const Key *key;
  u8 is_writable, is_signer;
} Meta;

typedef struct {
  const Key *program;
  const Meta *accounts;
  u64 accounts_len;
  const u8 *data;
  u64 data_len;
} Instruction;

typedef struct {
  const void *bytes;
  u64 len;
} Seed;

typedef struct {
  const Seed *seeds;
  u64 len;
} Signer;

typedef struct {
  u64 slot;
  i64 epoch_start, epoch, leader_schedule_epoch, unix_s;
} Clock;

extern u64 sol_invoke_signed_c(const Instruction *, const Account *, u64 accounts, const Signer *, u64 signers);
extern u64 sol_try_find_program_address(const Seed *, u64 seeds, const Key *program, Key *address, u8 *bump);
extern u64 sol_create_program_address(const Seed *, u64 seeds, const Key *program, Key *address);
extern u64 sol_get_clock_sysvar(Clock *);
extern void sol_memset_(void *, u8, u64);

/* The state account. Fields are only added at the end, and then `version` grows. */
typedef struct {
  u8 version; /* 1, and 0 in an account that was never opened */
  u8 vault_bump;
  u8 node_count;
  u8 unused[3];
  u16 fee_basis_points;
  u64 amount;
  i64 deadline_s;
  Key client;
  Key payer;
  Key authority;
  Key assigner; /* all zero: nobody, the nodes named at the opening are all */
  Key mint;
  Key platform_token;
  Key client_token;
  Key node_token[MAX_NODES];
} State;

_Static_assert(sizeof(State) == 376, "the layout of the state is part of the protocol");

static const Key SYSTEM = {{0, 0, 0, 0}};
static const Key TOKEN = {{0x93a165d7e1f6dd06, 0xac79ebce46e1cbd9, 0x91375b5fed85b41c, 0xa900ff7e85f58c3a}};
static const Key ASSOCIATED = {{0xf189244e8f25978c, 0x830d8e1429103dbb, 0x8410ffda99135a0b, 0x59f8e9dbd87b8e04}};

/* Everything about the call. It lies in the heap, because a stack frame of clang's is 512 bytes. */
typedef struct {
  Account account[MAX_ACCOUNTS];
  u64 account_count;
  const u8 *data;
  u64 data_len;
  const Key *program;
  const Account *mint;
  Instruction call;
  Meta meta[4];
  u8 call_data[64];
  Seed seed[4];
  Signer signer;
  u64 pay[MAX_NODES];
  Clock clock;
} Context;

#define CONTEXT ((Context *)0x300000000ull)

#define TRY(expression)                      \
  do {                                       \
    u64 failed = (expression);               \
    if (failed) return failed;               \
  } while (0)

#define REQUIRE(condition, error)            \
  do {                                       \
    if (!(condition)) return (error);        \
  } while (0)

static inline u64 read_u64(const u8 *at) { return *(const u64 *)at; }
static inline void write_u64(u8 *at, u64 value) { *(u64 *)at = value; }

static inline int same(const Key *a, const Key *b) {
  return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] && a->word[3] == b->word[3];
}

static inline u64 *data_len_of(Account *account) { return (u64 *)(account->data - 8); }

/* -- calls of other programs ---------------------------------------------------------------------- */

static inline void meta(Context *c, u64 at, const Account *account, u8 is_writable, u8 is_signer) {
  c->meta[at].key = account->key;
  c->meta[at].is_writable = is_writable;
  c->meta[at].is_signer = is_signer;
}

static inline void seed(Context *c, u64 at, const void *bytes, u64 len) {
  c->seed[at].bytes = bytes;
  c->seed[at].len = len;
}

/* Call `program` with the first `metas` of c->meta, signed by the seeds in c->seed, if there are any. */
static u64 invoke(Context *c, const Key *program, u64 metas, u64 data_len, u64 seeds) {
  c->call.program = program;
  c->call.accounts = c->meta;
  c->call.accounts_len = metas;
  c->call.data = c->call_data;
  c->call.data_len = data_len;
  c->signer.seeds = c->seed;
  c->signer.len = seeds;
  return sol_invoke_signed_c(&c->call, c->account, c->account_count, &c->signer, seeds ? 1 : 0);
}

/* Put the vault's seeds into c->seed. */
static void sign_as_vault(Context *c, const Account *state, const u8 *bump) {
  seed(c, 0, "vault", 5);
  seed(c, 1, state->key, 32);
  seed(c, 2, bump, 1);
}

/* Make an account at an address of ours, at the payer's cost. Not by create_account, which fails for ever when a stranger
 * has sent the address a lamport: what is there already counts, and is returned with the rest. One that was made before
 * is refused by the system program, which allocates only what is its own and empty. The address's seeds are in c->seed. */
static u64 create(Context *c, const Account *account, u64 space, const Key *owner, u64 seeds) {
  u64 needed = (ACCOUNT_OVERHEAD_BYTES + space) * RENT_LAMPORTS_PER_BYTE;
  write_u64(c->call_data, 2); /* Transfer: the number is a u32, and what it is about follows */
  if (*account->lamports < needed) {
    write_u64(c->call_data + 4, needed - *account->lamports);
    meta(c, 0, &c->account[PAYER_OF_OPEN], 1, 1);
    meta(c, 1, account, 1, 0);
    TRY(invoke(c, &SYSTEM, 2, 12, 0));
  }
  meta(c, 0, account, 1, 1);
  write_u64(c->call_data, 8); /* Allocate */
  write_u64(c->call_data + 4, space);
  TRY(invoke(c, &SYSTEM, 1, 12, seeds));
  write_u64(c->call_data, 1); /* Assign */
  *(Key *)(c->call_data + 4) = *owner;
  return invoke(c, &SYSTEM, 1, 36, seeds);
}

/* TransferChecked of the escrow's token. The vault, its own authority, signs with the seeds in c->seed. */
static u64 transfer(Context *c, const Account *from, const Account *to, const Account *owner, u64 amount) {
  c->call_data[0] = 12;
  write_u64(c->call_data + 1, amount);
  c->call_data[9] = c->mint->data[MINT_DECIMALS_AT];
  meta(c, 0, from, 1, 0);
  meta(c, 1, c->mint, 0, 0);
  meta(c, 2, to, 1, 0);
  meta(c, 3, owner, 0, 1);
  return invoke(c, &TOKEN, 4, 10, from == owner ? VAULT_SEEDS : 0);
}

/* -- addresses ------------------------------------------------------------------------------------ */

/* The associated token account of a wallet. */
static u64 derive_token(Context *c, const Key *wallet, const Key *mint, Key *address) {
  u8 bump;
  seed(c, 0, wallet, 32);
  seed(c, 1, &TOKEN, 32);
  seed(c, 2, mint, 32);
  return sol_try_find_program_address(c->seed, 3, &ASSOCIATED, address, &bump);
}

static u64 add_nodes(Context *c, State *state, u64 first) {
  for (u64 i = first; i < c->account_count; i++) {
    REQUIRE(state->node_count < MAX_NODES, BAD_NODES);
    Key *mine = &state->node_token[state->node_count];
    TRY(derive_token(c, c->account[i].key, &state->mint, mine));
    for (u64 k = 0; k < state->node_count; k++) REQUIRE(!same(&state->node_token[k], mine), BAD_NODES);
    state->node_count++;
  }
  return 0;
}

/* -- the instructions ----------------------------------------------------------------------------- */

static u64 open(Context *c) {
  enum { PAYER = PAYER_OF_OPEN, CLIENT, STATE, VAULT, CLIENT_TOKEN, MINT, AUTHORITY, ASSIGNER, PLATFORM };
  enum { TOKEN_PROGRAM = PLATFORM + 1, SYSTEM_PROGRAM, NODES };
  Account *account = c->account;
  REQUIRE(c->data_len == 51, BAD_DATA);
  REQUIRE(c->account_count >= NODES && c->account_count <= NODES + MAX_NODES, BAD_ACCOUNTS);
  REQUIRE(account[PAYER].is_signer && account[CLIENT].is_signer, NOT_SIGNED);
  REQUIRE(same(account[TOKEN_PROGRAM].key, &TOKEN) && same(account[SYSTEM_PROGRAM].key, &SYSTEM), BAD_PROGRAM);
  c->mint = &account[MINT];
  REQUIRE(same(c->mint->owner, &TOKEN) && c->mint->data_len == MINT_BYTES, BAD_MINT);
  REQUIRE(c->mint->data[MINT_INITIALIZED_AT] == 1, BAD_MINT);
  u16 fee_basis_points = *(const u16 *)(c->data + 1);
  u64 amount = read_u64(c->data + 3);
  i64 deadline_s = (i64)read_u64(c->data + 11);
  const u8 *job = c->data + 19;
  REQUIRE(amount > 0 && fee_basis_points <= FEE_WHOLE, BAD_TERMS);
  TRY(sol_get_clock_sysvar(&c->clock));
  i64 now_s = c->clock.unix_s;
  REQUIRE(now_s >= 0 && deadline_s > now_s && deadline_s - now_s <= LONGEST_S, BAD_DEADLINE);

  Key derived;
  u8 state_bump, vault_bump;
  seed(c, 0, "escrow", 6);
  seed(c, 1, account[CLIENT].key, 32);
  seed(c, 2, job, 32);
  TRY(sol_try_find_program_address(c->seed, 3, c->program, &derived, &state_bump));
  REQUIRE(same(&derived, account[STATE].key), BAD_ADDRESS);
  seed(c, 3, &state_bump, 1);
  TRY(create(c, &account[STATE], sizeof(State), c->program, 4));

  sign_as_vault(c, &account[STATE], &vault_bump);
  TRY(sol_try_find_program_address(c->seed, VAULT_SEEDS - 1, c->program, &derived, &vault_bump));
  REQUIRE(same(&derived, account[VAULT].key), BAD_ADDRESS);
  TRY(create(c, &account[VAULT], TOKEN_ACCOUNT_BYTES, &TOKEN, VAULT_SEEDS));
  c->call_data[0] = 18; /* InitializeAccount3 */
  *(Key *)(c->call_data + 1) = *account[VAULT].key;
  meta(c, 0, &account[VAULT], 1, 0);
  meta(c, 1, c->mint, 0, 0);
  TRY(invoke(c, &TOKEN, 2, 33, 0));

  State *state = (State *)account[STATE].data;
  state->version = 1;
  state->vault_bump = vault_bump;
  state->fee_basis_points = fee_basis_points;
  state->amount = amount;
  state->deadline_s = deadline_s;
  state->client = *account[CLIENT].key;
  state->payer = *account[PAYER].key;
  state->authority = *account[AUTHORITY].key;
  state->assigner = *account[ASSIGNER].key;
  state->mint = *account[MINT].key;
  TRY(derive_token(c, account[PLATFORM].key, &state->mint, &state->platform_token));
  TRY(derive_token(c, account[CLIENT].key, &state->mint, &state->client_token));
  REQUIRE(same(&state->client_token, account[CLIENT_TOKEN].key), BAD_DESTINATION);
  TRY(add_nodes(c, state, NODES));
  return transfer(c, &account[CLIENT_TOKEN], &account[VAULT], &account[CLIENT], amount);
}

/* The state of an open escrow, or null. Only this program can have written it: an account that somebody else made for
 * us holds zeros. */
static State *open_state(const Context *c, const Account *account) {
  State *state = (State *)account->data;
  int ours = same(account->owner, c->program) && account->data_len == sizeof(State);
  return ours && state->version == 1 ? state : 0;
}

static u64 assign(Context *c) {
  enum { ASSIGNER, STATE, NODES };
  REQUIRE(c->data_len == 1, BAD_DATA);
  REQUIRE(c->account_count > NODES && c->account_count <= NODES + MAX_NODES, BAD_ACCOUNTS);
  State *state = open_state(c, &c->account[STATE]);
  REQUIRE(state, NOT_OPEN);
  REQUIRE(c->account[ASSIGNER].is_signer, NOT_SIGNED);
  REQUIRE(same(&state->assigner, c->account[ASSIGNER].key), NOT_ALLOWED);
  return add_nodes(c, state, NODES);
}

static u64 give_up(Context *c) {
  enum { NODE, STATE, COUNT };
  REQUIRE(c->data_len == 1, BAD_DATA);
  REQUIRE(c->account_count == COUNT, BAD_ACCOUNTS);
  State *state = open_state(c, &c->account[STATE]);
  REQUIRE(state, NOT_OPEN);
  REQUIRE(c->account[NODE].is_signer, NOT_SIGNED);
  Key mine;
  TRY(derive_token(c, c->account[NODE].key, &state->mint, &mine));
  u64 at = 0;
  while (at < state->node_count && !same(&state->node_token[at], &mine)) at++;
  REQUIRE(at < state->node_count, BAD_NODES);
  state->node_count--;
  for (; at < state->node_count; at++) state->node_token[at] = state->node_token[at + 1];
  state->node_token[at] = SYSTEM;
  return 0;
}

/* Rounded down, without a product that could overflow. */
static u64 fee_of(u64 pay, u64 basis_points) {
  return pay / FEE_WHOLE * basis_points + pay % FEE_WHOLE * basis_points / FEE_WHOLE;
}

/* settle, release and refund: they differ in who may, and in what each node gets. */
static u64 close(Context *c, u8 how) {
  enum { WHO, STATE, VAULT, MINT, PLATFORM_TOKEN, CLIENT_TOKEN, PAYER, TOKEN_PROGRAM, NODES };
  Account *account = c->account;
  REQUIRE(c->account_count >= NODES, BAD_ACCOUNTS);
  State *state = open_state(c, &account[STATE]);
  REQUIRE(state, NOT_OPEN);
  u64 nodes = how == REFUND ? 0 : state->node_count;
  REQUIRE(c->data_len == (how == SETTLE ? 1 + 8 * nodes : 1), BAD_DATA);
  REQUIRE(c->account_count == NODES + nodes, BAD_ACCOUNTS);

  if (how == REFUND) {
    TRY(sol_get_clock_sysvar(&c->clock));
    int nobody = state->node_count == 0 && same(&state->assigner, &SYSTEM);
    REQUIRE(nobody || c->clock.unix_s >= state->deadline_s, TOO_EARLY);
  } else {
    REQUIRE(account[WHO].is_signer, NOT_SIGNED);
    REQUIRE(same(account[WHO].key, how == SETTLE ? &state->authority : &state->client), NOT_ALLOWED);
    REQUIRE(how == SETTLE || nodes == 1, BAD_NODES);
  }

  REQUIRE(same(account[TOKEN_PROGRAM].key, &TOKEN), BAD_PROGRAM);
  c->mint = &account[MINT];
  REQUIRE(same(c->mint->key, &state->mint), BAD_MINT);
  REQUIRE(same(account[PLATFORM_TOKEN].key, &state->platform_token), BAD_DESTINATION);
  REQUIRE(same(account[CLIENT_TOKEN].key, &state->client_token), BAD_DESTINATION);
  REQUIRE(same(account[PAYER].key, &state->payer), BAD_DESTINATION);
  for (u64 i = 0; i < nodes; i++) REQUIRE(same(account[NODES + i].key, &state->node_token[i]), BAD_DESTINATION);
  Key derived;
  sign_as_vault(c, &account[STATE], &state->vault_bump);
  TRY(sol_create_program_address(c->seed, VAULT_SEEDS, c->program, &derived));
  REQUIRE(same(&derived, account[VAULT].key), BAD_ADDRESS);

  u64 paid = 0, fees = 0;
  for (u64 i = 0; i < nodes; i++) {
    u64 pay = how == SETTLE ? read_u64(c->data + 1 + 8 * i) : state->amount;
    REQUIRE(pay <= state->amount - paid, BAD_PAY); /* paid never exceeds the amount */
    u64 fee = fee_of(pay, state->fee_basis_points);
    paid += pay;
    fees += fee;
    c->pay[i] = pay - fee;
  }
  Account *vault = &account[VAULT];
  u64 held = read_u64(vault->data + TOKEN_AMOUNT_AT); /* all of it goes: dust that was sent must not block the close */
  REQUIRE(held >= state->amount, TOO_LITTLE);

  for (u64 i = 0; i < nodes; i++)
    if (c->pay[i]) TRY(transfer(c, vault, &account[NODES + i], vault, c->pay[i]));
  if (fees) TRY(transfer(c, vault, &account[PLATFORM_TOKEN], vault, fees));
  if (held > paid) TRY(transfer(c, vault, &account[CLIENT_TOKEN], vault, held - paid));
  c->call_data[0] = 9; /* CloseAccount */
  meta(c, 0, vault, 1, 0);
  meta(c, 1, &account[PAYER], 1, 0);
  meta(c, 2, vault, 0, 1);
  TRY(invoke(c, &TOKEN, 3, 1, VAULT_SEEDS));

  /* Not only without lamports: lamports that come back in the same transaction must not revive it. */
  sol_memset_(state, 0, sizeof(State));
  *data_len_of(&account[STATE]) = 0;
  *account[STATE].owner = SYSTEM;
  *account[PAYER].lamports += *account[STATE].lamports;
  *account[STATE].lamports = 0;
  return 0;
}

/* -- the call ------------------------------------------------------------------------------------- */

/* Read what the loader wrote: a number of accounts, each in full or as the place of its first mention, then the data of
 * the instruction, then the program's own address. */
static u64 parse(Context *c, u8 *input) {
  u64 count = read_u64(input);
  REQUIRE(count <= MAX_ACCOUNTS, BAD_ACCOUNTS);
  input += 8;
  for (u64 i = 0; i < count; i++) {
    Account *account = &c->account[i];
    if (input[0] != 0xff) {
      *account = c->account[input[0]];
      input += 8;
      continue;
    }
    account->is_signer = input[1];
    account->is_writable = input[2];
    account->executable = input[3];
    account->key = (Key *)(input + 8);
    account->owner = (Key *)(input + 40);
    account->lamports = (u64 *)(input + 72);
    account->data_len = read_u64(input + 80);
    account->data = input + 88;
    input = (u8 *)(((u64)account->data + account->data_len + GROWTH_BYTES + 7) & ~7ull);
    account->rent_epoch = read_u64(input);
    input += 8;
  }
  c->account_count = count;
  c->data_len = read_u64(input);
  c->data = input + 8;
  c->program = (const Key *)(c->data + c->data_len);
  return 0;
}

u64 entrypoint(u8 *input) {
  Context *c = CONTEXT;
  TRY(parse(c, input));
  REQUIRE(c->data_len >= 1, BAD_DATA);
  u8 tag = c->data[0];
  if (tag == OPEN) return open(c);
  if (tag == ASSIGN) return assign(c);
  if (tag == SETTLE || tag == RELEASE || tag == REFUND) return close(c, tag);
  if (tag == GIVE_UP) return give_up(c);
  return BAD_DATA;
}
